"""Weights to and from the Hugging Face Hub: a folder with the files of a repository, and a local server as the hub."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from commands import command, succeeded
from safetensors.torch import load_file

from graft.errors import ConfigError, NotAvailable, WeightsError
from graft.export.hub import Hub, shareable
from graft.learning.checkpoints import checkpoint_file
from graft.learning.restore import from_file
from graft.models import Recipe, build_network
from graft.models.weights import default_classes, default_preprocessing, load_weights
from graft.models.weights.description import description_of_repository
from graft.models.weights.hugging_face import on_hub


@pytest.fixture(scope="module")
def exported(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on digits as a repository of the hub."""
    folder = tmp_path_factory.mktemp("hub") / "digits"
    words = ("format=hub", f"folder={folder}", "format.hub.license=mit", "format.hub.repo=null")
    done = command(folder.parent / "run", "-m", "graft.cli", "export", f"checkpoint={digits_run}", *words)
    assert "the same class for all" in succeeded(done).out
    return folder


def test_a_run_becomes_a_repository_with_a_model_card(exported: Path, digits_run: Path) -> None:
    assert sorted(file.name for file in exported.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    card = (exported / "README.md").read_text()
    summary = json.loads((digits_run / "summary.json").read_text())
    for text in (
        "license: mit",
        "library_name: graft",
        "graft predict checkpoint=FOLDER",
        f"| test/acc | {summary['metrics']['test/acc']:.4f} |",
        "| total |",
        "data=digits",
    ):
        assert text in card
    assert "/tmp" not in card
    assert str(digits_run) not in card + (exported / "config.json").read_text()
    config = json.loads((exported / "config.json").read_text())
    assert config["label_names"] == [str(digit) for digit in range(10)]


def test_a_folder_predicts_and_starts_a_run_as_the_checkpoint_does(exported: Path, digits_run: Path) -> None:
    mine, theirs = from_file(checkpoint_file(str(exported))), from_file(checkpoint_file(str(digits_run)))
    images = torch.rand(2, 3, *[theirs.preprocessing.input_size] * 2)
    with torch.no_grad():
        assert torch.equal(mine.network(images), theirs.network(images))
    assert (mine.classes, mine.preprocessing) == (theirs.classes, theirs.preprocessing)
    network = build_network(mine.recipe, 10)
    report = load_weights(network, mine.recipe, str(exported), keep_head=True, classes=mine.classes)
    assert report.random == ()


def serve(server: Any, repository: str, folder: Path) -> None:
    """Serve the files of `folder` as the hub serves those of a repository."""
    target = server.folder / repository / "resolve" / "main"
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("config.json"))  # the server has one ETag for all
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    server.headers = {"ETag": f'"{digest}"', "X-Repo-Commit": "0123456789" * 4}


def test_a_checkpoint_on_the_hub_is_fetched_once_and_computes_the_same(
    exported: Path, http_server: Any, tmp_path: Path, digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    serve(http_server, "org/digits", exported)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", http_server.url)
    template = f"{http_server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    theirs = from_file(checkpoint_file(str(digits_run)))
    images = torch.rand(2, 3, *[theirs.preprocessing.input_size] * 2)
    for _ in range(2):
        mine = from_file(checkpoint_file("hf://org/digits"))
        with torch.no_grad():
            assert torch.equal(mine.network(images), theirs.network(images))
        assert mine.classes == theirs.classes
    fetched = [path for path, _ in http_server.requests if path.endswith("model.safetensors")]
    assert len(fetched) == 1
    with pytest.raises(NotAvailable, match="checkpoint hf://org/other: not on this machine"):
        checkpoint_file("hf://org/other")


def test_timm_loads_an_exported_network_of_timm(tmp_path: Path) -> None:
    from graft.data.preprocessing import Preprocessing
    from graft.export.formats import ExportedNetwork
    from graft.learning.restore import Restored

    recipe = Recipe("test_vit.r160_in1k", family="timm", input_size=96)
    torch.manual_seed(0)
    network = build_network(recipe, 3).eval()
    preprocessing = Preprocessing(96, 110, "crop", (0.5,) * 3, (0.25,) * 3, "bicubic")
    restored = Restored(network, recipe, ("a", "b", "c"), preprocessing, "test")
    form, file = Hub(), tmp_path / "model.safetensors"
    form.write(exported := ExportedNetwork(restored, False), file)
    form.describe(exported, file, {}, {})
    assert "TODO: fill in" in (tmp_path / "README.md").read_text()
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.rand(2, 3, 96, 96)
    with torch.no_grad():
        assert torch.equal(theirs(images), network(images))
    assert list(timm.data.resolve_model_data_config(theirs)["mean"]) == [0.5, 0.5, 0.5]


def test_a_repository_of_timm_describes_its_network(tmp_path: Path) -> None:
    network = timm.create_model("test_resnet", num_classes=2)
    labels = {"label_names": ["ants", "bees"]}
    timm.models.save_for_hf(network, tmp_path, model_config=labels, safe_serialization=True)
    described = description_of_repository(json.loads((tmp_path / "config.json").read_text()))
    assert described["recipe"] == {"name": "test_resnet", "family": "timm"}
    restored = from_file(checkpoint_file(str(tmp_path)))
    assert restored.classes == ("ants", "bees")
    assert all(torch.equal(value, network.state_dict()[name]) for name, value in restored.network.state_dict().items())
    assert load_file(tmp_path / "model.safetensors").keys() == network.state_dict().keys()
    recipe = Recipe("test_resnet", family="timm")
    assert default_classes(recipe, str(tmp_path)) == ("ants", "bees")
    assert default_preprocessing(recipe, str(tmp_path)).input_size == network.pretrained_cfg["input_size"][1]


def test_addresses_and_repositories_are_checked(tmp_path: Path) -> None:
    assert on_hub("weights.pth") is None
    assert on_hub("hf://org/net@v1").revision == "v1"  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match="is no repository of the hub"):
        on_hub("hf://net")
    with pytest.raises(ConfigError, match=r"format\.hub\.repo=net: must be ORG/NAME"):
        Hub(repo="net")
    with pytest.raises(WeightsError, match="hf://ORG/NAME"):
        load_weights(torch.nn.Linear(1, 1), Recipe("vgg11"), str(tmp_path / "none.pth"))
    assert shareable("data.root=/home/me/photos") == "data.root=photos"
    assert shareable("data.root=s3://bucket/photos") == "data.root=photos"
    for word in ("optimizer.lr=0.1", "model.weights=hf://org/net", "data.name=org/set"):
        assert shareable(word) == word


def test_an_upload_sends_the_three_files_and_a_failure_is_explained(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    from graft.errors import ExportError

    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", lambda self, repo, **options: None)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", lambda self, **options: calls.append(options))
    Hub(repo="org/digits").publish(None, exported / "model.safetensors")  # type: ignore[arg-type]
    assert calls[0]["repo_id"] == "org/digits"
    assert set(calls[0]["allow_patterns"]) == {file.name for file in exported.iterdir()}

    def refused(self: Any, repo: str, **options: Any) -> None:
        raise OSError("401 Unauthorized")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refused)
    with pytest.raises(ExportError, match=r"format\.hub\.repo=org/digits: the upload failed \(401 Unauthorized\)"):
        Hub(repo="org/digits").publish(None, exported / "model.safetensors")  # type: ignore[arg-type]
