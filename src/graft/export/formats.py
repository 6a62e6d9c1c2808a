"""A network in the formats that other programs read, each written, read back and compared with the original."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from graft.errors import ExportError
from graft.learning.restore import Restored
from graft.models.families import Constructor, family_of
from graft.models.normalise import Normalise

LARGEST_PROTOBUF = 2**31 - 2**20
"""An ONNX file holds no more; larger weights lie in a file beside it."""

Run = Callable[[Tensor], Tensor]


class Handover:
    """What is handed over: `module` takes `images` and gives logits [B, C]; `prepare` makes such images.

    Args:
        restored: the network.
        preprocess: whether the normalisation is part of it. Then images are uint8 [B, 3, S, S] as they come out of
            resize and crop; else float32, with mean and std taken out already. Resizing stays outside in any case:
            what these formats have for it differs from Pillow's by up to one level a pixel, measured on 20 photographs
            of ants and bees as up to 0.39 in SqueezeNet's logits, and 2 of the 20 got another name.
    """

    def __init__(self, restored: Restored, preprocess: bool) -> None:
        self.restored = restored
        self.preprocess = preprocess
        normalise = Normalise(restored.preprocessing)
        self.module = Images(restored.network, normalise if preprocess else nn.Identity()).eval()
        self.prepare: Run = nn.Identity() if preprocess else normalise

    @cached_property
    def origin(self) -> Constructor:
        """How the network is made outside of Graft, where its library has one with these tensors."""
        recipe, network = self.restored.recipe, self.restored.network
        return family_of(recipe).constructor(recipe, network, len(self.restored.classes))

    def example(self) -> Tensor:
        """Two images, of zeros."""
        size = self.restored.preprocessing.input_size
        return self.prepare(torch.zeros(2, 3, size, size, dtype=torch.uint8))


class Images(nn.Module):
    """A network whose input is called `images`, and what happens to them first."""

    def __init__(self, network: nn.Module, first: nn.Module) -> None:
        super().__init__()
        self.network, self.first = network, first

    def forward(self, images: Tensor) -> Tensor:
        return self.network(self.first(images))


@dataclass(frozen=True)
class Format:
    """How a file is made, and how it is read back for the comparison."""

    write: Callable[[Handover, Path], None]
    read: Callable[[Handover, Path], Run]


@dataclass(frozen=True)
class Checked:
    """How the logits of a file compare with the original's over so many images."""

    images: int
    largest_difference: float


def check(run: Run, handover: Handover, images: Tensor, tolerance: float, file: str) -> Checked:
    """Compare what was read back with the original, batch by batch and in batches of one and of several.

    Args:
        run: what was read back.
        handover: the original.
        images: uint8 [N, 3, S, S], real ones.
        tolerance: of the logits, absolute.
        file: for the error message.

    Raises:
        ExportError: logits differ by more, or an image has another most probable class.
    """
    largest = 0.0
    with torch.inference_mode():
        for batch in (images[:1], *images[1:].split(8)):
            given = handover.prepare(batch)
            theirs, ours = run(given), handover.module(given)
            difference = float((theirs - ours).abs().max())
            largest = max(largest, difference)
            others = int((theirs.argmax(1) != ours.argmax(1)).sum())
            if not difference <= tolerance or others:
                raise ExportError(
                    f"{file}: does not compute what the checkpoint does, and is not kept. Of logits up to "
                    f"{float(ours.abs().max()):.2g} some differ by {difference:.2g} (tolerance={tolerance:g}), and "
                    f"{others} of {len(batch)} images get another class."
                )
    return Checked(len(images), largest)


# torch.export


def _write_program(handover: Handover, file: Path) -> None:
    batch = {"images": {0: torch.export.Dim("batch")}}
    program = torch.export.export(handover.module, (handover.example(),), dynamic_shapes=batch)
    content = io.BytesIO()  # torch's own writer does not say why it cannot write, or aborts the process
    torch.export.save(program, content)
    file.write_bytes(content.getbuffer())


def _read_program(handover: Handover, file: Path) -> Run:
    return torch.export.load(file).module()


# ONNX


def onnx_format(opset: int | None) -> Format:
    """ONNX of this opset; None: the one that torch's exporter recommends."""

    def write(handover: Handover, file: Path) -> None:
        size = sum(tensor.nbytes for tensor in handover.module.state_dict().values())
        with _quiet():
            torch.onnx.export(
                handover.module,
                (handover.example(),),
                file,
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes={"images": {0: "batch"}},
                opset_version=opset,
                external_data=size > LARGEST_PROTOBUF,
                verbose=False,
            )

    return Format(write, _read_onnx)


def _read_onnx(handover: Handover, file: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what the exporter tells its own developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


# State dicts


def _write_pickle(handover: Handover, file: Path) -> None:
    with file.open("wb") as opened:
        torch.save(_weights(handover), opened)


def _write_safetensors(handover: Handover, file: Path) -> None:
    """With recipe, classes and preprocessing in the metadata, so that `model.weights=FILE` knows them."""
    restored = handover.restored
    described: dict[str, Any] = {
        "recipe": restored.recipe.to_dict(),
        "classes": restored.classes,
        "preprocessing": restored.preprocessing.to_dict(),
    }
    metadata = {key: json.dumps(value) for key, value in described.items()}
    file.write_bytes(save(_weights(handover), metadata))  # save_file would make it unreadable for others


def _weights(handover: Handover) -> dict[str, Tensor]:
    return {name: tensor.contiguous() for name, tensor in handover.restored.network.state_dict().items()}


def _read_weights(handover: Handover, file: Path) -> Run:
    """Into the plain network of the library that it is from."""
    network = handover.origin.make()
    network.load_state_dict(load_file(file) if file.suffix == ".safetensors" else torch.load(file, weights_only=True))
    return network.eval()


def how_to_load(handover: Handover, file: Path) -> str:
    """A line of Python that reads `file`."""
    name = repr(file.name)
    if file.suffix == ".onnx":
        return f"session = onnxruntime.InferenceSession({name}); (logits,) = session.run(None, {{'images': images}})"
    if file.suffix == ".pt2":
        return f"network = torch.export.load({name}).module(); logits = network(images)"
    pickled = file.suffix == ".pth"
    read = f"torch.load({name}, weights_only=True)" if pickled else f"safetensors.torch.load_file({name})"
    return f"network = {handover.origin.line}; network.load_state_dict({read}); network.eval()"


STATE_DICT = {".pth": Format(_write_pickle, _read_weights), ".safetensors": Format(_write_safetensors, _read_weights)}


def formats(name: str, opset: int | None) -> dict[str, Format]:
    """The files of one format, by their endings."""
    return {"onnx": {".onnx": onnx_format(opset)}, "torch_export": {".pt2": PROGRAM}, "state_dict": STATE_DICT}[name]


PROGRAM = Format(_write_program, _read_program)
