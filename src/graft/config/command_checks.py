"""What `graft evaluate` and `graft predict` must not be told, said before anything heavy is loaded."""

from collections.abc import Collection, Iterable
from importlib.util import find_spec
from typing import Any

from omegaconf import OmegaConf

from graft.config.checks import check_views
from graft.config.commands import EvaluateConfig, ExportConfig, PredictConfig
from graft.config.fields import check_ranges, one_of
from graft.config.recorded import MODULE
from graft.errors import ConfigError, pip_install
from graft.system.files import safe_name

SPLITS = ("test", "val", "train", "all")
EXPORTS = ("onnx", "torch_export", "state_dict")


def said_keys(overrides: Iterable[str]) -> frozenset[str]:
    """The keys and groups that the command line names: {"data.root", "tta"} of ["data.root=/x", "++tta=true"]."""
    return frozenset(word.lstrip("+~").partition("=")[0] for word in overrides)


def check_evaluate(config: Any, said: Collection[str]) -> None:
    """Refuse what an EvaluateConfig must not say; `said` as `said_keys` gives it.

    Raises:
        ConfigError: names the key and the way out.
    """
    check_ranges(config, EvaluateConfig)
    if config.checkpoint is None:
        raise ConfigError("checkpoint is not set.\nGive checkpoint=RUN_FOLDER or checkpoint=FILE.ckpt.")
    _check_trust(config.trust)
    one_of("split", config.split, SPLITS)
    _check_preprocess(config.preprocess)
    if config.views is not None:
        check_views(config.views)
        if not config.tta:
            said_views = ",".join(config.views)
            raise ConfigError(f"views=[{said_views}]: only test-time augmentation looks at them; add tta=true.")
    hidden = sorted(key for key in said if key.startswith("data.preprocess"))
    if hidden:
        key = hidden[0].removeprefix("data.")
        raise ConfigError(
            f"{hidden[0]}: images are prepared as the checkpoint says, whatever the data set.\nTo change it: {key}=…"
        )


def check_predict(config: Any) -> None:
    """Refuse what a PredictConfig must not say.

    Raises:
        ConfigError: names the key and the way out.
    """
    check_ranges(config, PredictConfig)
    named = not OmegaConf.is_missing(config.model, "name")
    if (config.checkpoint is None) != named:
        said = f"checkpoint={config.checkpoint} and model={config.model.name} disagree" if named else "neither is set"
        raise ConfigError(
            f"checkpoint or model: {said}.\nGive checkpoint=RUN_FOLDER for a network you trained, "
            "or model=vgg16 for ImageNet's 1,000 classes."
        )
    if config.source is None or not sources_of(config):
        raise ConfigError(
            "source is not set.\nGive source=FILE, source=FOLDER, source='photos/*.jpg' or a [list,of,them]."
        )
    _check_trust(config.trust)
    _check_preprocess(config.preprocess)
    if isinstance(config.num_workers, str) and not config.num_workers.isdecimal():
        one_of("num_workers", config.num_workers, ("auto",))


def check_export(config: Any) -> list[str]:
    """The formats that an ExportConfig asks for; refuses what it must not say.

    Raises:
        ConfigError: names the key and the way out.
    """
    check_ranges(config, ExportConfig)
    if config.checkpoint is None:
        raise ConfigError("checkpoint is not set.\nGive checkpoint=RUN_FOLDER or checkpoint=FILE.ckpt.")
    _check_trust(config.trust)
    if config.name is not None and config.name != safe_name(config.name, keep=" +,=@()"):
        raise ConfigError(
            f"name={config.name!a}: must be a file's name without folder and ending, e.g. "
            f"name={safe_name(config.name)}.\nfolder=FOLDER says where it goes."
        )
    wanted = [config.format] if isinstance(config.format, str) else list(config.format)
    for name in wanted:
        one_of("format", name, EXPORTS)
    if config.preprocess and "state_dict" in wanted:
        raise ConfigError("format=state_dict and preprocess=true disagree: a state dict holds weights, no computation.")
    if "onnx" in wanted:
        missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]
        if missing:
            raise ConfigError(f"format=onnx needs {', '.join(missing)}.\nInstall with: {pip_install('export')}")
    return wanted


def sources_of(config: Any) -> list[str]:
    """`source` as a list, whether one or many."""
    return [str(each) for each in config.source] if not isinstance(config.source, str | int) else [str(config.source)]


def _check_trust(trust: Iterable[str]) -> None:
    for package in trust:
        if not MODULE.fullmatch(package):
            raise ConfigError(f"trust: {package!a} is no name of a package. Give e.g. trust=[my_package].")


def _check_preprocess(preprocess: Any) -> None:
    if preprocess.fit is not None:
        one_of("preprocess.fit", preprocess.fit, ("crop", "squash"))
    if preprocess.interpolation is not None:
        one_of("preprocess.interpolation", preprocess.interpolation, ("nearest", "bilinear", "bicubic"))
