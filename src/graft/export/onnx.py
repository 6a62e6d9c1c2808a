"""ONNX: the computation and the weights, for ONNX Runtime and everything else that reads ONNX."""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graft.errors import ConfigError, ExportError, pip_install
from graft.export.format import Format

if TYPE_CHECKING:
    from torch import Tensor

    from graft.export.formats import ExportedNetwork

LARGEST_PROTOBUF = 2**31 - 2**20
"""Bytes that an ONNX file can hold; larger weights go to a file next to it."""

PACKAGES = ("onnx", "onnxruntime", "onnxscript")


class Onnx(Format):
    """An .onnx file with the input `images` and the output `logits`, for batches of any size.

    Args:
        opset: version of ONNX's operators; None: the one that torch's exporter recommends.

    Raises:
        ConfigError: a package is missing, or the opset is out of range.
        ExportError: (`write`) the exporter writes another opset, because it cannot convert to this one.
    """

    suffix = ".onnx"

    def __init__(self, opset: int | None = None) -> None:
        missing = [name for name in PACKAGES if find_spec(name) is None]
        if missing:
            raise ConfigError(f"format=onnx needs {', '.join(missing)}.\nInstall with: {pip_install('export')}")
        if opset is not None and not 1 <= opset <= 100:
            raise ConfigError(f"format.onnx.opset={opset}: must be at least 1 and at most 100.")
        self.opset = opset

    def write(self, network: "ExportedNetwork", file: Path) -> None:
        import torch

        size = sum(tensor.nbytes for tensor in network.module.state_dict().values())
        with _quiet():
            torch.onnx.export(
                network.module,
                (network.example(),),
                file,
                dynamo=True,
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes={"images": {0: "batch"}},
                opset_version=self.opset,
                external_data=size > LARGEST_PROTOBUF,
                verbose=False,
            )
        written = opset_of(file)
        if self.opset not in (None, written):
            raise ExportError(
                f"format.onnx.opset={self.opset}: torch wrote opset {written} instead, so the file is not kept.\n"
                f"Give format.onnx.opset={written}, another that is not smaller, or leave it out."
            )

    def details(self, file: Path) -> dict[str, Any]:
        return {"opset": opset_of(file)}

    def read(self, network: "ExportedNetwork", file: Path) -> "Callable[[Tensor], Tensor]":
        import onnxruntime
        import torch

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run(["logits"], {"images": images.numpy()})[0])

    def how_to_load(self, network: "ExportedNetwork", file: Path) -> str:
        session = f"session = onnxruntime.InferenceSession({file.name!r})"
        return f"{session}; (logits,) = session.run(None, {{'images': images}})"


def opset_of(file: Path) -> int:
    """The version of ONNX's own operators that an .onnx file uses."""
    import onnx

    imports = onnx.load(file, load_external_data=False).opset_import
    return next(int(each.version) for each in imports if each.domain in ("", "ai.onnx"))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's messages, which are for its own developers."""
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
