"""Keys of all commands but `graft train`, with types and defaults."""

from dataclasses import dataclass, field
from typing import Any

from graft.config.fields import Open, Parts, bounded, choice, literal, same_range
from graft.config.schema import (
    AugmentConfig,
    CacheConfig,
    DataConfig,
    DownloadConfig,
    FreezeConfig,
    MetricsConfig,
    ModelConfig,
    PathsConfig,
    PreprocessConfig,
    StrategyConfig,
    TrainConfig,
    ViewsConfig,
)


@dataclass
class CompareConfig:
    """The whole configuration of `graft compare`."""

    runs: str = literal("outputs")
    sort: str | None = None
    """The metric that orders the rows; null: optimized_metric of the runs."""
    output: str | None = literal(None)
    """Folder for compare.md, compare.csv and compare.html; null: next to the runs."""


@dataclass
class InferenceConfig:
    """Device, precision and memory format; null: as in training."""

    accelerator: str | None = None
    precision: str | None = None
    channels_last: bool | None = None


@dataclass
class EvaluateDataConfig(Open):
    """A data set to evaluate on; every null means the value of the run."""

    _target_: str | None = None
    name: str | None = None
    root: str | None = literal(None)
    batch_size: int | None = same_range(DataConfig, "batch_size")
    num_workers: int | str | None = same_range(DataConfig, "num_workers")
    timeout: float | None = same_range(DataConfig, "timeout")
    download: bool | None = None
    shots: int | None = same_range(DataConfig, "shots")
    val_fraction: float | None = same_range(DataConfig, "val_fraction")
    fold: int | None = same_range(DataConfig, "fold")
    folds: int | None = same_range(DataConfig, "folds")
    group_pattern: str | None = literal(None)
    on_error: str | None = None
    duplicates: str | None = None
    corrections: str | None = literal(None)
    resident_gb: float | None = same_range(DataConfig, "resident_gb")
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    """Values for training in the files of the group; ignored here, see EvaluateConfig.preprocess."""


@dataclass
class EvaluateConfig:
    """The whole configuration of `graft evaluate`."""

    checkpoint: Any = literal(None, listed=True)
    """A run's folder or a file, or a list of them: an ensemble."""
    model: ModelConfig = field(default_factory=lambda: ModelConfig(name=None))
    """The network of a state dict that does not name it; without a `_target_` there is none."""
    split: str = choice("test", "test", "val", "train", "all")
    tta: bool | None = None
    views: ViewsConfig = field(default_factory=ViewsConfig)
    """Views of test-time augmentation; empty: those of the run."""
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    """Metrics in addition to those of the run."""
    topk: int = bounded(5, least=1)
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    trainer: InferenceConfig = field(default_factory=InferenceConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    trust: list[str] = field(default_factory=list)
    """Packages that may be imported where the checkpoint names them, e.g. [my_package]."""
    download: DownloadConfig = field(default_factory=DownloadConfig)


@dataclass
class SoupConfig:
    """The whole configuration of `graft soup`."""

    runs: Any = literal(None, listed=True)
    """A run's folder, a checkpoint, a folder of either, or a list of them."""
    method: str = choice("greedy", "greedy", "uniform")
    optimized_metric: str | None = None
    """The metric of validation that greedy chooses by; null: that of the first run."""
    statistics_images: int = bounded(1024, least=2)
    """Training images on which BatchNorm's statistics are measured again."""
    test: bool = True
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    """Metrics in addition to those of the first run."""
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    trainer: InferenceConfig = field(default_factory=InferenceConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    trust: list[str] = field(default_factory=list)
    """Packages that may be imported where a checkpoint names them, e.g. [my_package]."""
    download: DownloadConfig = field(default_factory=DownloadConfig)

    def evaluation(self) -> EvaluateConfig:
        """The keys that `graft evaluate` has, too."""
        return EvaluateConfig(
            split="val", metrics=self.metrics, data=self.data, trainer=self.trainer, paths=self.paths, trust=self.trust
        )


@dataclass
class PredictConfig:
    """The whole configuration of `graft predict`."""

    source: Any = None
    checkpoint: Any = literal(None, listed=True)
    """A run's folder or a file, or a list of them: an ensemble."""
    model: ModelConfig = field(default_factory=lambda: ModelConfig(name=None))
    """A pretrained network instead of a checkpoint, or the network of a state dict; without a `_target_` there is
    none."""
    topk: int = bounded(5, least=1)
    rows: int = bounded(10, least=0)
    output: str | None = literal(None)
    show: bool = False
    folder: str = literal("outputs/predict")
    batch_size: int = bounded(32, least=1)
    num_workers: int | str = bounded("auto", least=0, words=("auto",))
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)
    trainer: InferenceConfig = field(default_factory=InferenceConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    trust: list[str] = field(default_factory=list)
    """Packages that may be imported where the checkpoint names them, e.g. [my_package]."""
    download: DownloadConfig = field(default_factory=DownloadConfig)


@dataclass
class InspectConfig:
    """The whole configuration of `graft inspect`."""

    seed: int = bounded(0, least=0, below=2**32)
    output: str | None = literal(None)
    near: int = bounded(12, least=0, most=15)
    rows: int = bounded(10, least=1)
    sheets: int = bounded(100, least=0)
    per_sheet: int = bounded(48, least=1)
    folder: str = literal("outputs/inspect")
    checkpoint: str | None = literal(None)
    trust: list[str] = field(default_factory=list)
    """Packages that may be imported where the checkpoint names them, e.g. [my_package]."""
    model: ModelConfig = field(default_factory=ModelConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    freeze: FreezeConfig = field(default_factory=FreezeConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    data: DataConfig = field(default_factory=DataConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    download: DownloadConfig = field(default_factory=DownloadConfig)


@dataclass
class PackConfig:
    """The whole configuration of `graft pack`."""

    output: str | None = literal(None)
    """Folder for the shards; new, or left unfinished by an earlier call."""
    shard_mb: float = bounded(128.0, above=0, most=8000)
    short_side: int | None = bounded(None, least=8, most=16_384)
    seed: int = bounded(0, least=0, below=2**32)
    data: DataConfig = field(default_factory=DataConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    download: DownloadConfig = field(default_factory=DownloadConfig)


@dataclass
class FormatConfig(Parts):
    """Export formats by name, each a `graft.export.Format`; null leaves one out."""


@dataclass
class ExportConfig:
    """The whole configuration of `graft export`."""

    checkpoint: str | None = literal(None)
    model: ModelConfig = field(default_factory=lambda: ModelConfig(name=None))
    """The network of a state dict that does not name it; without a `_target_` there is none."""
    format: FormatConfig = field(default_factory=FormatConfig)
    preprocess: bool = False
    images: int = bounded(32, least=2)
    samples: str | None = literal(None)
    tolerance: float = bounded(1e-4, above=0)
    name: str | None = literal(None)
    folder: str = literal("outputs/export")
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    trust: list[str] = field(default_factory=list)
    """Packages that may be imported where the checkpoint names them, e.g. [my_package]."""


@dataclass
class SearchedRatesConfig:
    """The values of optimizer.lr that `graft lr_find` tries, in ascending order and evenly spaced in log."""

    min_lr: float = bounded(1e-6, above=0)
    max_lr: float = bounded(10.0, above=0)
    steps: int = bounded(100, least=10, most=100_000)
    """Number of optimizer steps, one for each learning rate."""
    smoothing: float = bounded(0.9, least=0, below=1)
    """Weight of the earlier losses in the moving average of the loss."""
    diverged: float = bounded(4.0, above=1)
    """The search ends when the smoothed loss is this many times the smallest one."""


@dataclass
class LrFindConfig(TrainConfig):
    """The whole configuration of `graft lr_find`: that of `graft train`, and the learning rates to try."""

    lr_find: SearchedRatesConfig = field(default_factory=SearchedRatesConfig)


@dataclass
class AdviceConfig:
    """How `graft advise` compares networks."""

    minutes: float = bounded(10.0, above=0)
    """Time for all networks together; where it is short, a smaller sample of the images is used."""
    images: int | None = bounded(1000, least=40)
    """Size of the stratified sample of the images, but at least 20 of each class; null: all."""
    download: bool = False
    """Whether the weights of `models` may be downloaded."""
    folds: int = bounded(5, least=2, most=20)
    """Folds of the cross-validation."""


@dataclass
class AdviseConfig(TrainConfig):
    """The whole configuration of `graft advise`: that of `graft train`, and the networks to compare."""

    models: Any = None
    """Names of the networks, [squeezenet1_1,vgg16]; null: all whose weights are on this machine."""
    weights: Any = None
    """Network -> its weights, as in model.weights: {vgg16: FILE}; untyped, because Hydra could not set a typed mapping
    from the command line."""
    folder: str = literal("outputs/advise")
    advise: AdviceConfig = field(default_factory=AdviceConfig)


@dataclass
class ImprovementConfig:
    """What `graft improve` looks for."""

    folds: int = bounded(5, least=2, most=20)
    """Folds of the cross-validation: each image is judged by heads that were fitted to the other folds."""
    kinds: Any = None
    """Kinds of proposals, [label,outlier]; null: all."""
    test: bool = False
    """Whether test images are looked at, too."""
    curve: bool = True
    """Whether to forecast what more images would buy."""
    count: int = bounded(100, least=1)
    """Number of images of `unlabelled` to label next."""
    page: int = bounded(200, least=1, most=2000)
    """Largest number of proposals on the page; proposals.csv has all."""


@dataclass
class ImproveConfig:
    """The whole configuration of `graft improve`."""

    run: str | None = literal(None)
    """A run's folder or checkpoint: its data and its network."""
    unlabelled: str | None = literal(None)
    """Folder of images without labels, of which to choose those to label next."""
    seed: int | None = same_range(TrainConfig, "seed")
    folder: str = literal("outputs/improve")
    improve: ImprovementConfig = field(default_factory=ImprovementConfig)
    model: ModelConfig = field(default_factory=lambda: ModelConfig(name=None))
    """A pretrained network for the features; without a `_target_` that of the run, or `DEFAULT_NETWORK`."""
    models: Any = None
    """Names of several pretrained networks, whose features are joined: [squeezenet1_1,vgg16]."""
    weights: Any = None
    """Network of `models` -> its weights, as in model.weights: {vgg16: FILE}."""
    data: EvaluateDataConfig = field(default_factory=EvaluateDataConfig)
    trainer: InferenceConfig = field(default_factory=InferenceConfig)
    cache: CacheConfig = field(default_factory=lambda: CacheConfig(views=None))
    paths: PathsConfig = field(default_factory=PathsConfig)
    trust: list[str] = field(default_factory=list)
    """Packages that may be imported where the checkpoint names them, e.g. [my_package]."""
    download: DownloadConfig = field(default_factory=DownloadConfig)

    def evaluation(self) -> EvaluateConfig:
        """The keys that `graft evaluate` has, too."""
        return EvaluateConfig(data=self.data, trainer=self.trainer, paths=self.paths, trust=self.trust)
