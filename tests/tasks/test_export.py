"""`graft export`: each file gives the checkpoint's outputs when loaded as its JSON describes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from hydra import compose, initialize_config_dir
from PIL import Image

import graft.models
from graft.config import conf_dir
from graft.config.registration import register
from graft.data.loading import load_splits
from graft.data.preprocessing import Preprocessing
from graft.errors import ConfigError, DataError, ExportError
from graft.export import onnx as onnx_format
from graft.export.formats import ExportedNetwork, verify
from graft.learning.restore import Restored, from_checkpoint, from_pretrained
from graft.models import Recipe, build_network
from graft.models.normalise import Normalise
from graft.system.files import sha256, writing_folder_atomically
from graft.tasks.export import export

LIBRARIES = {"timm": timm, "graft": graft, "onnxruntime": onnxruntime, "safetensors": safetensors} | {
    "torch": torch,
    "torchvision": torchvision,
}


def composed(*overrides: str) -> Any:
    register()
    with initialize_config_dir(str(conf_dir())):
        return compose("export", list(overrides))


def loaded(file: Path, images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """The logits of `images` by what the file's own JSON says to type."""
    monkeypatch.chdir(file.parent)
    names = {**LIBRARIES, "images": images.numpy() if file.suffix == ".onnx" else images}
    exec(json.loads(Path(f"{file}.json").read_text())["load"], names)
    with torch.inference_mode():
        return torch.as_tensor(names["logits"] if "logits" in names else names["network"](images))


def digits(count: int) -> torch.Tensor:
    """uint8 [count, 3, 32, 32], as evaluation prepares them."""
    images = load_splits("digits", root=None, seed=0).train
    pictures = [images.load(index).resize((32, 32), Image.Resampling.BILINEAR) for index in range(count)]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2)


def saved(network: torch.nn.Module, recipe: Recipe, folder: Path, data: dict[str, Any]) -> Path:
    """A checkpoint as training leaves it."""
    made = {
        "recipe": recipe.to_dict(),
        "classes": ["a", "b", "c"],
        "preprocessing": Preprocessing(input_size=64, resize_size=64).to_dict(),
        "config": {"data": data, "paths": {"data": "data", "outputs": "outputs"}, "trainer": {}},
        "metrics": {},
    }
    weights = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    folder.mkdir(exist_ok=True)
    torch.save({"state_dict": weights, "graft": made}, folder / "some.ckpt")
    return folder / "some.ckpt"


@pytest.fixture(scope="module")
def handed(digits_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of all formats of the same run."""
    folder = tmp_path_factory.mktemp("export") / "handed"
    export(composed(f"checkpoint={digits_run}", "format=[onnx,torch_export,state_dict]", f"folder={folder}"))
    return folder


def test_each_file_has_a_json_that_describes_it(handed: Path, digits_run: Path) -> None:
    files = {"vgg_mini.onnx", "vgg_mini.pt2", "vgg_mini.pth", "vgg_mini.safetensors"}
    assert {file.name for file in handed.iterdir()} == files | {f"{name}.json" for name in files}
    assert [file.name for file in handed.parent.iterdir()] == ["handed"], "nothing half done is left"
    restored = from_checkpoint(digits_run / "checkpoints" / "best.ckpt")
    for name in files:
        known = json.loads((handed / f"{name}.json").read_text())
        assert known["classes"] == list(restored.classes)
        assert (
            Preprocessing.from_dict({k: known[k] for k in restored.preprocessing.to_dict()}) == restored.preprocessing
        )
        assert known["sha256"] == sha256(handed / name)
        assert known["checked"]["images"] == 32
        assert known["checked"]["largest_difference"] <= 1e-4


@pytest.mark.parametrize("ending", [".onnx", ".pt2", ".pth", ".safetensors"])
def test_each_file_equals_the_checkpoint_for_any_batch_size(
    ending: str, handed: Path, digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored = from_checkpoint(digits_run / "checkpoints" / "best.ckpt")
    normalised = Normalise(restored.preprocessing)(digits(7))
    with torch.inference_mode():
        ours = restored.network(normalised)
    assert ours.argmax(1).unique().numel() > 2, "images of several classes are what makes this test tell"
    for batch in (1, 7):
        theirs = loaded(handed / f"vgg_mini{ending}", normalised[:batch], monkeypatch)
        torch.testing.assert_close(theirs, ours[:batch], atol=1e-4, rtol=0)


def test_onnx_names_its_input_output_and_batch(handed: Path) -> None:
    model = onnx.load(handed / "vgg_mini.onnx")
    onnx.checker.check_model(model)
    (images,), (logits,) = model.graph.input, model.graph.output
    assert (images.name, logits.name) == ("images", "logits")
    assert [side.dim_param or side.dim_value for side in images.type.tensor_type.shape.dim] == ["batch", 3, 32, 32]


def test_the_opset_in_the_json_is_that_of_the_onnx_file(handed: Path) -> None:
    opsets = {each.domain: each.version for each in onnx.load(handed / "vgg_mini.onnx").opset_import}
    assert json.loads((handed / "vgg_mini.onnx.json").read_text())["opset"] == opsets[""]


def test_an_opset_that_the_exporter_does_not_write_is_refused(digits_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"format\.onnx\.opset=11: torch wrote opset \d+"):
        export(composed(f"checkpoint={digits_run}", "format.onnx.opset=11", f"folder={tmp_path}/out"))
    assert not [*tmp_path.rglob("*.onnx")]


def test_exported_preprocessing_takes_uint8_images(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = composed(
        f"checkpoint={digits_run}", "preprocess=true", f"folder={tmp_path}", "format.onnx.opset=21", "name=scans"
    )
    export(config)
    restored, images = from_checkpoint(digits_run / "checkpoints" / "best.ckpt"), digits(5)
    with torch.inference_mode():
        ours = restored.network(Normalise(restored.preprocessing)(images))
    theirs = loaded(tmp_path / "scans.onnx", images, monkeypatch)
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)
    assert onnx.load(tmp_path / "scans.onnx").opset_import[0].version == 21
    assert "uint8" in json.loads((tmp_path / "scans.onnx.json").read_text())["input"]["values"]


def test_exported_weights_can_be_finetuned_and_have_class_names(handed: Path) -> None:
    restored = from_pretrained(Recipe("vgg_mini"), str(handed / "vgg_mini.safetensors"))
    assert restored.classes == tuple(str(digit) for digit in range(10))
    assert restored.preprocessing.fit == "squash"


@pytest.mark.filterwarnings("ignore:The default weight initialization:FutureWarning")
@pytest.mark.parametrize(
    ("name", "family", "library"),
    [
        ("resnet18", None, "torchvision.models"),
        ("squeezenet1_1", None, "torchvision.models"),
        ("googlenet", None, "torchvision.models"),
        ("resnet10t", "timm", "timm."),
    ],
)
def test_a_state_dict_loads_into_the_plain_network_of_its_library(
    name: str, family: str | None, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    recipe, draw = Recipe(name, family=family), np.random.default_rng(0)
    network = build_network(recipe, 3)
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):  # as if trained, so that not everything dies on the way
            layer.momentum = None
    with torch.no_grad():
        network.train()(torch.randn(8, 3, 64, 64))
    checkpoint = saved(network, recipe, tmp_path / "run", {"name": "digits", "root": None, "options": {}})
    export(composed(f"checkpoint={checkpoint}", "format=state_dict", f"folder={tmp_path}/out", "images=4"))
    images = torch.from_numpy(draw.normal(size=(2, 3, 64, 64)).astype(np.float32))
    with torch.inference_mode():
        ours = network.eval()(images)
    for ending in (".pth", ".safetensors"):
        assert library in json.loads((tmp_path / "out" / f"{name}{ending}.json").read_text())["load"]
        torch.testing.assert_close(loaded(tmp_path / "out" / f"{name}{ending}", images, monkeypatch), ours)


def test_a_custom_network_keeps_its_names_with_a_note(
    digits_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "graft"):
        export(composed(f"checkpoint={digits_run}", "format=state_dict", f"folder={tmp_path}", "images=2"))
    assert "torchvision has no network with these layers" in caplog.text
    assert "graft.models" in json.loads((tmp_path / "vgg_mini.pth.json").read_text())["load"]


def test_a_file_that_differs_from_the_checkpoint_is_an_error() -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 3))
    restored = Restored(network, Recipe("vgg_mini"), ("a", "b", "c"), Preprocessing(2, 2), "")
    original = ExportedNetwork(restored, preprocess=False)
    images = torch.randint(0, 256, (9, 3, 2, 2), dtype=torch.uint8)
    assert verify(network, original, images, 1e-4, "same").largest_difference == 0
    for wrong in (
        lambda given: network(given) + 1e-3,
        lambda given: network(given).flip(1),
        lambda given: network(given) * float("nan"),
        lambda given: network(given)[:, :2],
    ):
        with pytest.raises(ExportError, match=r"f\.onnx"):
            verify(wrong, original, images, 1e-4, "f.onnx")


def test_a_failed_export_leaves_existing_files(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("old")

    def fail() -> None:
        with writing_folder_atomically(tmp_path / "out") as folder:
            (folder / "old").write_text("new")
            raise ExportError("no")

    with pytest.raises(ExportError):
        fail()
    assert [str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*")] == ["out", "out/old"]
    assert (tmp_path / "out" / "old").read_text() == "old"


def test_example_photographs_replace_missing_data(tmp_path: Path) -> None:
    network = build_network(Recipe("squeezenet1_1"), 3)
    checkpoint = saved(network, Recipe("squeezenet1_1"), tmp_path / "run", {"name": "folder", "root": "/nowhere"})
    words = (f"checkpoint={checkpoint}", "format=state_dict", f"folder={tmp_path}/out")
    with pytest.raises(DataError, match=r"/nowhere(.|\n)*samples=FOLDER"):
        export(composed(*words))
    assert not (tmp_path / "out").exists()
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.new("RGB", (70, 80), (number * 80, 10, 10)).save(tmp_path / "photos" / f"{number}.png")
    export(composed(*words, f"samples={tmp_path}/photos"))
    assert json.loads((tmp_path / "out" / "squeezenet1_1.pth.json").read_text())["checked"]["images"] == 3


@pytest.mark.parametrize(
    ("overrides", "words"),
    {
        "format=state_dict preprocess=true": ["format.pth", "preprocess=true", "disagree"],
        "format.onnx.opset=0": ["format.onnx.opset=0", "at least 1"],
        "format.onnx.opst=0": ["format.onnx.opst", "Did you mean opset"],
        "format.onnx=null": ["format", "at least one"],
        "format.other._target_=collections.OrderedDict": ["format.other", "graft.export.Format"],
        "format=onnx checkpoint=null": ["checkpoint is not set"],
    }.items(),
)
def test_a_mistake_names_the_way_out(overrides: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        export(composed("checkpoint=x", *overrides.split()))
    for word in words:
        assert word in str(caught.value)


def test_onnx_that_is_not_installed_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_format, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"onnxscript(.|\n)*pip install 'graft-vision\[export\]'"):
        export(composed("checkpoint=x"))


MINE = """
import numpy, torch
from graft.export import Format

class Arrays(Format):
    suffix = ".npz"
    weights_only = True

    def __init__(self, spoil=False):
        self.spoil = spoil

    def write(self, network, file):
        arrays = {name: tensor.numpy() for name, tensor in network.weights().items()}
        last = list(arrays)[-1]
        arrays[last] = arrays[last] + float(self.spoil)
        numpy.savez(file, **arrays)

    def read(self, network, file):
        return network.origin.filled({name: torch.as_tensor(each) for name, each in numpy.load(file).items()})

    def how_to_load(self, network, file):
        return f"arrays = numpy.load({file.name!r})"
"""


def test_a_custom_format_is_verified_and_described(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_formats.py").write_text(MINE)
    (tmp_path / "conf" / "format").mkdir(parents=True)
    (tmp_path / "conf" / "format" / "arrays.yaml").write_text("arrays: {_target_: my_formats.Arrays, spoil: false}\n")
    monkeypatch.syspath_prepend(tmp_path)
    words = (f"checkpoint={digits_run}", "format=[arrays,torch_export]", "images=4", f"folder={tmp_path}/out",
             f"hydra.searchpath=[file://{tmp_path}/conf]")  # fmt: skip
    export(composed(*words))
    assert (tmp_path / "out" / "vgg_mini.pt2.json").exists()
    known = json.loads((tmp_path / "out" / "vgg_mini.npz.json").read_text())
    assert (known["load"], known["checked"]["images"]) == ("arrays = numpy.load('vgg_mini.npz')", 4)
    with pytest.raises(ExportError, match=r"spoilt\.npz: does not compute"):
        export(composed(*words, "format.arrays.spoil=true", "name=spoilt", "format.torch_export=null"))
    assert not list((tmp_path / "out").glob("spoilt*"))
