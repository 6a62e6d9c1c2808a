"""Checks of the configuration of `graft evaluate`, `predict` and `export`, made before anything heavy is imported."""

from collections.abc import Collection, Iterable
from typing import Any

from graft.config.commands import EvaluateConfig, ExportConfig, PredictConfig, SoupConfig
from graft.config.fields import check_ranges
from graft.config.recorded import MODULE
from graft.config.targets import check_target
from graft.errors import ConfigError
from graft.models.class_names import class_names
from graft.system.files import safe_name
from graft.tasks.part_checks import check_metrics, check_views


def overridden_keys(overrides: Iterable[str]) -> frozenset[str]:
    """The keys and groups set on the command line: {"data.root", "tta"} of ["data.root=/x", "++tta=true"]."""
    return frozenset(word.lstrip("+~").partition("=")[0] for word in overrides)


def check_evaluate(config: EvaluateConfig, overrides: Collection[str]) -> None:
    """Refuse mistakes in an EvaluateConfig.

    Args:
        config: of the command.
        overrides: see `overridden_keys`.

    Raises:
        ConfigError: names the key and the way out.
    """
    check_ranges(config, EvaluateConfig)
    class_names(config.model.classes)
    _require_checkpoint(config.checkpoint)
    _check_trust(config.trust)
    check_metrics(config.metrics)
    if views := config.views.parts():
        check_views(views)
        if not config.tta:
            names = ",".join(views)
            raise ConfigError(f"views=[{names}]: only test-time augmentation uses them; add tta=true.")
    hidden = sorted(key for key in overrides if key.startswith("data.preprocess"))
    if hidden:
        key = hidden[0].removeprefix("data.")
        raise ConfigError(
            f"{hidden[0]}: the checkpoint decides the preprocessing, for any data set.\nTo change it: {key}=…"
        )


def check_predict(config: PredictConfig) -> None:
    """Refuse mistakes in a PredictConfig, see `check_predictor`, and one without a source."""
    check_predictor(config)
    if config.source is None or not sources_of(config):
        raise ConfigError(
            "source is not set.\nGive source=FILE, source=FOLDER, source='photos/*.jpg' or a [list,of,them]."
        )


def check_predictor(config: PredictConfig) -> None:
    """Refuse mistakes in a PredictConfig, regardless of its source.

    Raises:
        ConfigError: names the key and the way out.
    """
    check_ranges(config, PredictConfig)
    class_names(config.model.classes)
    if config.checkpoint is None and config.model._target_ is None:
        raise ConfigError(
            "checkpoint or model: neither is set.\nGive checkpoint=RUN_FOLDER for a network you trained, "
            "or model=vgg16 for ImageNet's 1,000 classes."
        )
    _check_trust(config.trust)


def check_export(config: ExportConfig) -> None:
    """Refuse mistakes in an ExportConfig.

    Raises:
        ConfigError: names the key and the way out.
    """
    check_ranges(config, ExportConfig)
    class_names(config.model.classes)
    _require_checkpoint(config.checkpoint)
    _check_trust(config.trust)
    if config.name is not None and config.name != safe_name(config.name, keep=" +,=@()"):
        raise ConfigError(
            f"name={config.name!a}: must be a file's name without folder and ending, e.g. "
            f"name={safe_name(config.name)}.\nfolder=FOLDER says where it goes."
        )
    formats = config.format.parts()
    if not formats:
        raise ConfigError("format={}: choose at least one, e.g. format=onnx.")
    for name, node in formats.items():
        check_target(f"format.{name}", node)


def check_soup(config: SoupConfig) -> None:
    """Refuse mistakes in a SoupConfig.

    Raises:
        ConfigError: names the key and the way out.
    """
    check_ranges(config, SoupConfig)
    if config.runs is None or not texts_of(config.runs):
        raise ConfigError("runs is not set.\nGive runs=SWEEP_FOLDER, or 'runs=[RUN_FOLDER,OTHER_RUN]'.")
    _check_trust(config.trust)
    check_metrics(config.metrics)
    metric = config.optimized_metric
    if metric is not None and not metric.startswith("val/"):
        raise ConfigError(
            f"optimized_metric={metric}: a soup is chosen on validation images.\nGive a metric of them, e.g. val/acc."
        )


def sources_of(config: PredictConfig) -> list[str]:
    """`source` as a list, whether one or many."""
    return texts_of(config.source)


def texts_of(value: Any) -> list[str]:
    """One text, or a list of them, as a list."""
    return [str(value)] if isinstance(value, str | int) else [str(each) for each in value]


def _require_checkpoint(checkpoint: Any) -> None:
    if checkpoint is None or not texts_of(checkpoint):
        raise ConfigError("checkpoint is not set.\nGive checkpoint=RUN_FOLDER, or a .ckpt, .pth or .safetensors file.")


def _check_trust(trust: Iterable[str]) -> None:
    for package in trust:
        if not MODULE.fullmatch(package):
            raise ConfigError(f"trust: {package!a} is not the name of a package. Give e.g. trust=[my_package].")
