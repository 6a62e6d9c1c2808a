"""A network of timm with weights from the hub: downloaded, frozen, trained and saved completely."""

import hashlib
from pathlib import Path
from typing import Any

import timm
import torch
from commands import succeeded, train
from safetensors.torch import save_file

from graft.models import Recipe, build_network
from graft.models.heads import head_modules
from graft.models.layouts import belongs
from graft.models.weights import load_weights

NAME = "test_vit.r160_in1k"
QUICK = (
    "model=timm",
    f"model.name={NAME}",
    "strategy=feature_extract",
    "data=faces",
    "data.batch_size=8",
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=2",
    "trainer.limit_test_batches=2",
    "trainer.precision=32-true",
    "logger.tensorboard=false",
)


def test_a_network_of_timm_trains_on_weights_from_the_hub(http_server: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained = timm.create_model(NAME).state_dict()
    file = http_server.folder / "timm" / NAME / "resolve" / "main" / "model.safetensors"
    file.parent.mkdir(parents=True)
    save_file(trained, file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    http_server.headers = {"ETag": f'"{digest}"', "X-Repo-Commit": "0123456789" * 4}
    hub = {"HF_ENDPOINT": http_server.url, "HF_HOME": str(tmp_path / "hub")}

    run = succeeded(train(tmp_path / "run", *QUICK, **hub))
    assert run.summary["weights"]["source"] == f"timm {NAME}"
    assert run.summary["weights"]["sha256"] == digest
    assert set(run.summary["weights"]["random"]) == {"head.weight", "head.bias"}
    assert run.summary["versions"]["timm"] == timm.__version__

    checkpoint = torch.load(run.folder / "checkpoints" / "best.ckpt", weights_only=True)
    recipe = Recipe.from_dict(checkpoint["graft"]["recipe"])
    classes = checkpoint["graft"]["classes"]
    network = build_network(recipe, len(classes))
    report = load_weights(network, recipe, str(run.folder / "checkpoints" / "best.ckpt"), keep_head=True)
    assert (report.random, report.classes) == ((), tuple(classes))
    head = head_modules(network)
    tensors = network.state_dict()
    assert {name for name in trained if not torch.equal(tensors[name], trained[name])} == {"head.weight", "head.bias"}
    assert all(belongs(name, head) for name in ("head.weight", "head.bias"))
    assert checkpoint["graft"]["preprocessing"]["resize_size"] == 168, "160 / 0.95, as timm has it"


def test_an_unreachable_hub_fails_at_once_with_address_and_local_path(tmp_path: Path) -> None:
    hub = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hub")}
    done = train(tmp_path / "run", *QUICK, **hub)
    assert done.code == 1
    assert "Traceback" not in done.err
    for word in (
        f"http://127.0.0.1:9/timm/{NAME}/resolve/main/model.safetensors",
        str(tmp_path / "hub" / "hub" / f"models--timm--{NAME}" / "snapshots" / "main" / "model.safetensors"),
        "strategy=scratch",
    ):
        assert word in done.err
