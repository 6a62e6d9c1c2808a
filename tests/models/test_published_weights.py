"""torchvision's weights are downloaded once and verified."""

import hashlib
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import Weights, WeightsEnum
from torchvision.transforms._presets import ImageClassification

from graft.errors import NotAvailable, WeightsError
from graft.models import Recipe, build_network
from graft.models.published import TorchHub, torchvision_address
from graft.models.weights import load_weights, locate_weights
from graft.system import downloads

SQUEEZE = Recipe("squeezenet1_1")


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache of torch.hub."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def _trained(recipe: Recipe, classes: int, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return build_network(recipe, classes)


def _serve(http_server, monkeypatch, content: bytes | None = None, digest: str | None = None) -> WeightsEnum:
    """torchvision's entry for squeezenet1_1, served from here: 10 classes at random."""
    file = http_server.folder / "file.pth"
    torch.save(_trained(SQUEEZE, 10).state_dict(), file)
    digest = digest or hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    served = file.rename(http_server.folder / f"squeezenet1_1-{digest}.pth")
    if content is not None:
        served.write_bytes(content)
    names = [f"class {i}" for i in range(10)]
    row = Weights(
        f"{http_server.url}/{served.name}", partial(ImageClassification, crop_size=224), {"categories": names}
    )
    entries = WeightsEnum("Served", {"IMAGENET1K_V1": row, "DEFAULT": row})
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: entries)
    return entries.DEFAULT


def test_torchvisions_weights_are_fetched_once_and_checked(http_server, hub, monkeypatch, capsys):
    entry = _serve(http_server, monkeypatch)
    network = _trained(SQUEEZE, 10, seed=2)
    report = load_weights(network, SQUEEZE, "default", keep_head=True)
    served = _trained(SQUEEZE, 10).state_dict()
    assert all(torch.equal(network.state_dict()[name], served[name]) for name in report.loaded)
    assert report.random == ()
    assert report.source == "torchvision squeezenet1_1 IMAGENET1K_V1"
    assert report.classes == tuple(f"class {i}" for i in range(10))
    assert report.sha256.startswith(Path(entry.url).stem[-8:])
    load_weights(network, SQUEEZE, "default")
    assert len(http_server.requests) == 1
    assert (hub / Path(entry.url).name).is_file()
    assert capsys.readouterr().out == ""


def test_a_download_with_a_wrong_hash_is_refused_and_not_kept(http_server, hub, monkeypatch):
    entry = _serve(http_server, monkeypatch, digest="0123abcd")
    with pytest.raises(WeightsError, match=r"squeezenet1_1-0123abcd\.pth: its checksum is not the published one"):
        load_weights(_trained(SQUEEZE, 10), SQUEEZE, "default")
    assert not (hub / Path(entry.url).name).exists()


def test_a_damaged_file_in_the_cache_is_detected_by_its_hash(http_server, hub, monkeypatch):
    entry = _serve(http_server, monkeypatch)
    hub.mkdir(parents=True)
    (hub / Path(entry.url).name).write_bytes(b"half a file")
    with pytest.raises(WeightsError, match=r"the file is damaged\. Delete it"):
        load_weights(_trained(SQUEEZE, 10), SQUEEZE, "default")
    assert http_server.requests == []


def test_a_broken_download_resumes_at_the_last_byte(http_server, hub, monkeypatch):
    entry = _serve(http_server, monkeypatch)
    http_server.cut_after = 1000
    network = _trained(SQUEEZE, 10, seed=2)
    assert load_weights(network, SQUEEZE, "default", keep_head=True).random == ()
    assert [wanted for _, wanted in http_server.requests] == [None, "bytes=1000-"]
    assert [path.name for path in hub.iterdir() if not path.name.startswith(".")] == [Path(entry.url).name]


def test_weights_are_located_without_being_fetched(http_server, hub, monkeypatch):
    entry = _serve(http_server, monkeypatch)
    assert locate_weights(SQUEEZE, "default") is None
    assert not [path for path, _ in http_server.requests]
    (http_server.folder / Path(entry.url).name).unlink()
    missing = locate_weights(SQUEEZE, "default")
    assert missing.url == entry.url
    assert missing.manual_path == str(hub / Path(entry.url).name)


def test_without_a_network_the_error_names_address_and_local_path(hub, monkeypatch):
    def refuse(url, *, what, manual_path):
        raise NotAvailable(what, url, manual_path, "no network")

    monkeypatch.setattr(downloads, "require_reachable", refuse)
    missing = locate_weights(Recipe("vgg16"), "default")
    assert "vgg16-397923af.pth" in missing.url
    assert str(hub) in missing.manual_path
    with pytest.raises(NotAvailable, match="no network"):
        load_weights(_trained(Recipe("squeezenet1_1"), 2), Recipe("squeezenet1_1"), "default")


FETCH = """
import sys, torchvision
from functools import partial
from torchvision.models import Weights, WeightsEnum
from torchvision.transforms._presets import ImageClassification
from graft.models import Recipe, build_network
from graft.models.weights import load_weights
row = Weights(sys.argv[1], partial(ImageClassification, crop_size=224), {"categories": ["x"] * 10})
entries = WeightsEnum("Served", {"IMAGENET1K_V1": row, "DEFAULT": row})
torchvision.models.get_model_weights = lambda name: entries
recipe = Recipe("squeezenet1_1")
print(load_weights(build_network(recipe, 10), recipe, "default").sha256)
"""


def test_two_processes_share_one_download(http_server, hub, monkeypatch):
    entry = _serve(http_server, monkeypatch)
    command = [sys.executable, "-c", FETCH, entry.url]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {run.communicate()[0].strip() for run in runs}
    assert [run.returncode for run in runs] == [0, 0]
    assert len(answers) == 1
    assert len(http_server.requests) == 1


def test_addresses_and_cache_paths_equal_those_of_torchvision_without_importing_it(monkeypatch, tmp_path):
    monkeypatch.delenv("TORCH_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    code = (
        "import json, sys; from graft.models.families.torchvision import classifiers as names;"
        "from graft.models.published import torchvision_address as of;"
        "print(json.dumps({n: [(a := of(n, 'default')).url, str(a.path)] for n in names()}));"
        "assert 'torch' not in sys.modules"
    )
    found = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert found.keys() == set(torchvision.models.list_models(module=torchvision.models))
    for name, (url, path) in found.items():
        entries = torchvision.models.get_model_weights(name)
        assert url == entries.DEFAULT.url
        assert path == str(TorchHub(url).path)
        assert all(torchvision_address(name, entry.name).url == entry.url for entry in entries)
    assert torchvision_address("vgg16", "IMAGENET1K_V9") is None
