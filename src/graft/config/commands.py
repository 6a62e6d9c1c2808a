"""Every key of the other commands, its type and its default."""

from dataclasses import dataclass, field
from typing import Any

from graft.config.training import DataConfig, DownloadConfig, ModelConfig, PathsConfig, PreprocessConfig


@dataclass
class CompareConfig:
    """The whole configuration of `graft compare`."""

    runs: str = "outputs"
    sort: str = "test/acc"
    output: str | None = None
    """Folder for compare.md, compare.csv and compare.html; null: beside the runs."""


@dataclass
class InferenceConfig:
    """Where to compute; every null means: as the network was trained."""

    accelerator: str | None = None
    precision: str | None = None
    channels_last: bool | None = None


@dataclass
class EvaluateDataConfig:
    """A DataConfig of which every null means: as in the run."""

    name: str | None = None
    root: str | None = None
    batch_size: int | None = None
    num_workers: int | str | None = None
    download: bool | None = None
    shots: int | None = None
    val_fraction: float | None = None
    fold: int | None = None
    folds: int | None = None
    on_error: str | None = None
    resident_gb: float | None = None
    options: dict[str, Any] = field(default_factory=dict)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    """What the files of the group say for training; not used here, see EvaluateConfig.preprocess."""


@dataclass
class EvaluateConfig:
    """The whole configuration of `graft evaluate`."""

    checkpoint: str | None = None
    split: str = "test"
    tta: bool | None = None
    views: list[str] | None = None
    topk: int = 5
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    trainer: InferenceConfig = field(default_factory=InferenceConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    download: DownloadConfig = field(default_factory=DownloadConfig)


@dataclass
class PredictConfig:
    """The whole configuration of `graft predict`."""

    source: Any = None
    checkpoint: str | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    topk: int = 5
    rows: int = 10
    output: str | None = None
    show: bool = False
    folder: str = "outputs/predict"
    batch_size: int = 32
    num_workers: int | str = "auto"
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    trainer: InferenceConfig = field(default_factory=InferenceConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    download: DownloadConfig = field(default_factory=DownloadConfig)


@dataclass
class InspectConfig:
    """The whole configuration of `graft inspect`."""

    seed: int = 0
    output: str | None = None
    near: int = 12
    rows: int = 10
    sheets: int = 100
    per_sheet: int = 48
    folder: str = "outputs/inspect"
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    download: DownloadConfig = field(default_factory=DownloadConfig)


@dataclass
class ExportConfig:
    """The whole configuration of `graft export`."""

    checkpoint: str | None = None
    format: Any = "onnx"
    preprocess: bool = False
    opset: int | None = None
    images: int = 32
    samples: str | None = None
    tolerance: float = 1e-4
    name: str | None = None
    folder: str = "outputs/export"
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
