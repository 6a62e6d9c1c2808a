"""Keys of `graft train`, with types, ranges and defaults."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import II, MISSING

from graft.config.fields import Bounds, Open, Part, Parts, bounded, choice, literal
from graft.config.metrics import HIGHER, direction, known_directions

ACCELERATORS = ("auto", "cpu", "gpu", "cuda", "mps")
PRECISIONS = ("auto", "32", "32-true", "bf16", "bf16-mixed", "bf16-true", "16", "16-mixed", "16-true", "64", "64-true")
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


@dataclass
class ModelConfig(Part):
    """`_target_`: class or function that builds the network; called with its arguments and `num_classes`."""

    own: ClassVar[tuple[str, ...]] = (
        "weights", "classes", "keep_head", "head_from", "first_conv", "gradient_clip_val", "sgd_lr",
    )  # fmt: skip
    name: str | None = MISSING
    """Name of the network in its library; for a custom network its name in summaries, by default that of the target."""
    weights: str | None = literal("default")
    """"default" (the library's pretrained weights), "bundled", null (random), a .pth, .safetensors or .ckpt file, or
    hf://ORG/NAME, a repository of the Hugging Face hub."""
    classifier: str | None = None
    """VGG only: "vgg" (three linear layers), "linear" (one) or "pooled" (average pool, BatchNorm, one linear)."""
    table: list[Any] | None = None
    """VGG only: channels of each convolution, "M" for a 2x2 max-pool."""
    batch_norm: bool | None = None
    dropout: float | None = bounded(None, least=0, below=1)
    input_size: int | None = bounded(None, least=1, most=16_384)
    """Side of the input in pixels; null: the network's own."""
    average_pool: int | None = bounded(None, least=0, most=1024)
    """VGG only: side of the adaptive average pool before the classifier; 0 for none; null: the network's own."""
    hidden: int | None = bounded(None, least=1, most=65_536)
    """VGG with classifier=vgg only: width of its two hidden linear layers; null: 4096."""
    classes: Any = None
    """Names of the classes of a weight file that does not contain them, by index: a list, or a file with one per
    line."""
    keep_head: bool = False
    """Keep the head of the weights, whose classes must be those of the data in the same order; false: a new head."""
    head_from: Any = None
    """Class -> class or classes of the weights that initialise its row of the new head: {ants: ant, bees: bee}."""
    first_conv: str = choice("mean", "mean", "repeat", "keep", "random")
    """How the first convolution of the weights fits another number of channels (data.channels): "mean" gives each the
    mean over theirs, "repeat" theirs in order (both scaled to keep the size of the sum, and the same for one channel),
    "keep" theirs to the first and 0 to the others; "random": not from the weights."""
    gradient_clip_val: float | None = bounded(None, above=0)
    """Default of trainer.gradient_clip_val for this network."""
    sgd_lr: float = bounded(0.01, above=0)
    """Default of optimizer.lr with optimizer=sgd for this network."""


@dataclass
class PreprocessConfig:
    """Preprocessing of an image for evaluation; null: as the network's weights require."""

    input_size: Any = bounded(None, least=1, most=4096)
    """Side of the square input in pixels, or [height,width]."""
    resize_size: int | None = bounded(None, least=1, most=32_768)
    fit: str | None = choice(None, "crop", "squash")
    mean: list[float] | None = bounded(None, least=0, most=1)
    std: list[float] | None = bounded(None, above=0)
    """Of values in [0, 1], one per channel."""
    interpolation: str | None = choice(None, "nearest", "bilinear", "bicubic")


@dataclass
class DataConfig(Open):
    """Keys that are not listed here are arguments of the target."""

    _target_: str = MISSING
    """A source function, or a LightningDataModule class."""
    name: str | None = None
    """Name in tables and messages; null: the short name of the target."""
    root: str | None = literal(None)
    batch_size: int | str = bounded(32, least=1, words=("auto",))
    """Images per training step on each device; "auto": the largest power of two that fits into the GPU's memory."""
    num_workers: int | str = bounded("auto", least=0, words=("auto",))
    timeout: float | None = bounded(600.0, above=0)
    """Seconds that a batch of the worker processes may take before the run ends with the reason; null: no limit."""
    download: bool = True
    shots: int | None = bounded(None, least=1)
    """Keep this many seeded training images of each class."""
    sampler: str = choice("shuffle", "shuffle", "balanced")
    """"shuffle": each training image once per epoch; "balanced": the same number of images, as many of each class."""
    val_fraction: float = bounded(0.1, least=0, below=1)
    """Fraction of the training images to validate on if the set has no validation split; 0: validate on test."""
    fold: int | None = bounded(None, least=0)
    """With folds=K: index (0 to K - 1) of the part of the non-test images to validate on."""
    folds: int | None = bounded(None, least=2)
    """K-fold cross-validation, swept with -m 'data.fold=range(0,5)' data.folds=5; null: the set's own split."""
    group_pattern: str | None = literal(None)
    """Regular expression with one (group), searched for in the path of each image relative to data.root, e.g.
    '^(patient[0-9]+)_': no group is in two splits or folds."""
    on_error: str = choice("raise", "raise", "skip")
    """Unreadable images: "raise" stops before the first step with a list, "skip" excludes them and logs a note."""
    duplicates: str = choice("keep", "keep", "drop", "group")
    """Images of which (near) copies are in training and in validation or test: "keep" logs a note, "drop" removes them
    from training, "group" draws splits that keep copies together."""
    resident_gb: float = bounded(2.0, least=0, infinite=True)
    """Sets whose decoded images need at most this memory, in 2**30 bytes, are decoded once and kept in memory."""
    channels: int | None = bounded(None, least=1, most=256)
    """Channels of the images: 1 for grey ones, more for multispectral ones; null: as many as data.bands, or 3."""
    bits: int | None = bounded(None, least=8, most=16)
    """Bits of the levels in memory, 8 or 16; null: 8 for RGB, else 16, in which those of 8 bits are exact."""
    bands: list[int] | None = bounded(None, least=1, most=256)
    """Numbers, from 1, of the bands of a file that become the channels, as in [4,3,2]; null: all of them."""
    max_value: float | None = bounded(None, above=0)
    """Value in a file that is white, e.g. 4095 for 12 bits; larger ones are clipped. null: the largest of its type."""
    horizontal_flip: float = bounded(0.5, least=0, most=1)
    """Probability of a mirror image in the augment options that flip; 0 where its class is another (digits, text)."""
    draft: bool = True
    """Large JPEGs are decoded at a half, quarter or eighth of their size where random crops keep their pixels."""
    preprocess: PreprocessConfig = field(default_factory=PreprocessConfig)


FREEZE_NOTHING = "graft.transfer.freeze.none"
"""The freeze policy of a run in which every layer trains."""


@dataclass
class StrategyConfig:
    name: str = MISSING
    pretrained: bool = True
    """Whether to start from model.weights; false: random weights."""
    freeze: str = FREEZE_NOTHING
    """Target of the freeze policy of freeze=auto."""
    lr_multipliers: dict[str, float] = bounded(default_factory=dict, least=0)
    layer_decay: float | None = bounded(None, above=0, most=1)
    decay_norm_and_bias: bool = True
    batch_norm_statistics: str = choice("update", "update", "keep")
    """Running mean and variance of the BatchNorm layers that weights were loaded for: "update" averages them over the
    training batches, "keep" leaves them as they are (evaluation mode), while weight and bias train."""
    cached_views: int | str | None = bounded(None, least=1, words=("all",))
    """Default of cache.views for this strategy."""
    l2_sp: float | None = bounded(None, above=0)
    """Pull pretrained weights towards their initial values with this strength instead of optimizer.weight_decay, which
    remains for new layers (L2-SP); null: weight decay for all."""


@dataclass
class FreezeConfig(Part):
    """`_target_`: a pure function of (stages, parameter names, epoch, its arguments), see `graft.transfer.freeze`."""

    patterns: list[str] | None = None
    schedule: Any = bounded(None, least=0)
    """Group or stage -> epoch; untyped, because Hydra could not set a typed mapping from the command line."""
    every: int | None = bounded(None, least=1)


@dataclass
class OptimizerConfig(Part):
    """`_target_`: an optimizer, called with the parameter groups; null arguments are not passed."""

    own: ClassVar[tuple[str, ...]] = ("weight_decay", "sam_rho", "sam_adaptive")
    lr: float = bounded(MISSING, above=0)
    """Learning rate of the groups whose multiplier is 1."""
    weight_decay: float = bounded(0.0, least=0)
    momentum: float | None = bounded(None, least=0, below=1)
    nesterov: bool | None = None
    betas: list[float] | None = bounded(None, least=0, below=1, length=2)
    eps: float | None = bounded(None, above=0)
    sam_rho: float | None = bounded(None, above=0)
    """Sharpness-aware minimisation with any optimizer: radius of the neighbourhood, e.g. 0.05; null: without it."""
    sam_adaptive: bool = False
    """Distances in the neighbourhood are relative to the size of each weight (ASAM; sam_rho is then 0.5 to 2)."""


@dataclass
class SchedulerConfig(Part):
    """`_target_`: a schedule, called with the optimizer; null: a constant learning rate."""

    own: ClassVar[tuple[str, ...]] = ("interval", "monitor")
    interval: str = choice("epoch", "step", "epoch")
    """How often it steps: after each optimizer step or after each epoch."""
    monitor: str | None = None
    """The metric that a schedule such as ReduceLROnPlateau follows, e.g. val/loss."""
    warmup_epochs: float | None = bounded(None, least=0)
    min_lr_ratio: float | None = bounded(None, least=0, most=1)
    step_size: int | None = bounded(None, least=1)
    gamma: float | None = bounded(None, above=0)
    pct_start: float | None = bounded(None, least=0, most=1)
    div_factor: float | None = bounded(None, above=0)
    final_div_factor: float | None = bounded(None, above=0)
    anneal_strategy: str | None = choice(None, "cos", "linear")
    cycle_momentum: bool | None = None
    factor: float | None = bounded(None, above=0, below=1)
    patience: int | None = bounded(None, least=0)


@dataclass
class CropConfig:
    scale: list[float] = bounded(default_factory=lambda: [0.08, 1.0], above=0, most=1, length=2, ascending=True)
    ratio: list[float] = bounded(default_factory=lambda: [0.75, 1.3333333333333333], above=0, length=2, ascending=True)


@dataclass
class AugmentConfig:
    random_resized_crop: CropConfig | None = None
    random_crop_padding: int | None = bounded(None, least=0, most=16_384)
    horizontal_flip: float = bounded(0.0, least=0, most=1)
    vertical_flip: float = bounded(0.0, least=0, most=1)
    policy: str | None = choice(None, "trivial", "rand", "auto")
    color_jitter: float = bounded(0.0, least=0)
    random_erasing: float = bounded(0.0, least=0, most=1)
    transforms: list[Any] = field(default_factory=list)
    """Further transforms by `_target_`, of torchvision v2 or custom, applied to each image after the others."""
    mixup: float = bounded(0.0, least=0)
    cutmix: float = bounded(0.0, least=0)


DISTILLATION = ("temperature", "alpha")
"""Keys of the group loss that belong to its teacher, if it has one."""


@dataclass
class LossConfig(Part):
    """`_target_`: a loss, called with logits [B, C] and class indices [B], or class probabilities [B, C] with MixUp."""

    own: ClassVar[tuple[str, ...]] = (
        "class_weights", "class_weights_beta", "positive_weights", "on_nan", "nan_limit", "teacher", *DISTILLATION,
    )  # fmt: skip
    label_smoothing: float | None = bounded(None, least=0, below=1)
    class_weights: Any = bounded(None, above=0)
    """null, "balanced" (inverse class frequency), "effective_number" (Cui et al. 2019), one weight per class, or some
    by name (the others: 1); passed to the loss as `weight`."""
    class_weights_beta: float = bounded(0.999, least=0, below=1)
    """Of class_weights=effective_number: 0 weighs all classes alike, near 1 by their inverse frequency."""
    positive_weights: Any = bounded(None, above=0)
    """null, "balanced" (images without a label / images with it), one weight per label, or some by name (the others:
    1): how much an image that has a label counts in the loss of that label; passed to the loss as `pos_weight`."""
    on_nan: str = choice("raise", "raise", "skip")
    """A step whose loss is NaN or infinite: "raise" ends the run, "skip" ignores the step and records its images."""
    nan_limit: int = bounded(10, least=0)
    """With on_nan=skip, number of such steps after which the run ends with an error."""
    teacher: Any = literal(None, listed=True)
    """Knowledge distillation with any loss: a run's folder or a checkpoint, or a list of them."""
    temperature: float | None = bounded(None, above=0)
    alpha: float | None = bounded(None, least=0)
    """With a teacher, `temperature` divides the logits and `alpha` is the weight of its probabilities, 1 - alpha that
    of the labels; without one, they are arguments of the target."""

    def arguments(self) -> dict[str, Any]:
        of_target = () if self.teacher is not None else DISTILLATION
        return super().arguments() | {name: value for name in of_target if (value := getattr(self, name)) is not None}


@dataclass
class MetricsConfig(Parts):
    """Metrics of validation and test in addition to loss and accuracy, by name: NAME gives val/NAME and test/NAME.

    `metrics.NAME.higher_is_better` says in which direction a metric improves whose class does not.
    """

    own: ClassVar[tuple[str, ...]] = (HIGHER,)


@dataclass
class TrainerConfig(Open):
    """Keys that are not listed here are arguments of Lightning's Trainer, e.g. detect_anomaly."""

    accelerator: str = choice("auto", *ACCELERATORS)
    devices: int | str = bounded("auto", least=1, words=("auto",))
    num_nodes: int = bounded(1, least=1)
    strategy: str = choice("auto", "auto", "ddp", "ddp_slurm")
    precision: str = choice("auto", *PRECISIONS)
    max_epochs: int = bounded(10, least=-1)
    max_steps: int = bounded(-1, least=-1)
    max_time: str | None = literal(None)
    """Time for training, validation and test, HH:MM:SS; the schedule is scaled to it. null: no limit."""
    val_check_interval: int | float | None = bounded(None, least=1, fraction=Bounds(above=0, most=1))
    """Validate also every N optimizer steps (an int) or fraction of an epoch (a float); null: after each epoch."""
    gradient_clip_val: float | None = bounded(II("model.gradient_clip_val"), above=0)
    """Norm that gradients are clipped to; null for none; default: the network's own."""
    accumulate_grad_batches: int = bounded(1, least=1)
    limit_train_batches: int | float | None = bounded(None, least=1, fraction=Bounds(above=0, most=1))
    limit_val_batches: int | float | None = bounded(None, least=0, fraction=Bounds(least=0, most=1))
    limit_test_batches: int | float | None = bounded(None, least=0, fraction=Bounds(least=0, most=1))
    log_every_n_steps: int = bounded(10, least=1)
    deterministic: bool | str = choice(False, "warn")
    """Bit-identical results on a GPU too; "warn": warn of operations that PyTorch cannot compute deterministically."""
    benchmark: bool | None = None
    """On a GPU, benchmark cuDNN's algorithms for each convolution and use the fastest; not if deterministic. This takes
    seconds and gains about a percent: null benchmarks in runs of at least 2,000 steps."""
    channels_last: bool = True
    keep_memory: bool = True
    """On a CPU, reuse freed memory instead of returning it to the kernel after each step; Linux with glibc."""
    compile: bool | str = choice(False, *COMPILE_MODES)
    """torch.compile: true, or its mode: "reduce-overhead" (CUDA graphs, for networks of many small steps), …"""
    baseline: bool = True
    """Validate once before the first step (step 0)."""
    test: bool = True


@dataclass
class LoggerConfig(Parts):
    """Loggers by name; `logger=[tensorboard,csv]` chooses them, `logger.csv=false` leaves one out."""


@dataclass
class CallbacksConfig(Parts):
    """Keys that configure Graft's callbacks; any other Lightning callback is added under a new name."""

    checkpoint: str = choice("best", "best", "last")
    """"best": keep and test the weights of the best `optimized_metric`; "last": those of the last epoch."""
    checkpoint_every_n_steps: int | None = bounded(None, least=1)
    """Write last.ckpt every N optimizer steps too, for epochs of hours; null: at the end of each epoch."""
    keep: str = choice("all", "all", "best", "none")
    """Checkpoints that a finished run keeps: "all", "best" (enough for inference, not to resume) or "none"."""
    early_stopping: int | None = bounded(None, least=1)
    """Stop after this many validations without a better `optimized_metric`."""
    ema: float | None = bounded(None, least=0, below=1)
    """Decay of an exponential moving average of the weights, e.g. 0.999; validated and saved instead of them."""
    progress: str = choice("auto", "auto", "bar", "lines", "none")
    """"auto" (a bar on a terminal, otherwise a line per epoch), "bar", "lines" or "none"."""


@dataclass
class FiguresConfig(Parts):
    """Figures of the best epoch by name, see `graft.review.figures`; null omits one."""


@dataclass
class ViewsConfig(Parts):
    """Views of test-time augmentation by name, see `graft.learning.views`; null leaves one out."""


@dataclass
class ReviewConfig:
    """Figures and tables of a run for TensorBoard and `graft compare`; 0 or false: none."""

    measures: bool = True
    """Gradient norm of each parameter group, step time and images per second."""
    texts: bool = True
    """The configuration, the layer table, the combined learning curves and HPARAMS."""
    pictures: bool = True
    """curves.png and confusion.png in the run's folder."""
    layers: str = choice("groups", "groups", "full")
    """Table of layers in the log: one row per parameter group ("groups"), and the parameters that train ("full")."""
    figures: FiguresConfig = field(default_factory=FiguresConfig)
    images: int = bounded(16, least=0)
    """Images of the first training batch, of the validation and of the test set."""
    worst: int = bounded(16, least=0)
    """Images with the lowest probability of their true class in the best epoch."""
    gradcam: int = bounded(4, least=0)
    """Validation images with a Grad-CAM heat map."""
    curves: int = bounded(16, least=0)
    """Classes with a precision-recall curve."""
    embedding: int = bounded(500, least=0)
    """Validation images in the projector."""
    record: int = bounded(48, least=0)
    """Thumbnails in review.npz for `graft compare`; 0: no such file."""
    graph: bool = False
    """The network's graph."""


@dataclass
class SearchConfig:
    """Optuna study of a search and pruning of its trials; set by sweep=…."""

    storage: str | None = literal(None)
    """A database (sqlite:///FILE, postgresql://…), or a journal (journal:///FILE, redis://…)."""
    study: str | None = literal(None)
    trial: int | None = bounded(None, least=0)
    """Number of the trial, set by the sweeper."""
    pruner: str = choice("none", "none", "median", "percentile", "halving", "hyperband")
    """Pruner that stops trials early: "none", "median", "percentile", "halving" or "hyperband"."""
    startup_trials: int = bounded(5, least=0)
    """Number of complete trials before any is pruned ("median", "percentile")."""
    warmup_epochs: int = bounded(1, least=0)
    """Epochs of each trial before it can be pruned; for "halving" and "hyperband" the smallest budget."""
    percentile: float = bounded(50.0, least=0, most=100)
    """"percentile" keeps this best percentage of the trials."""
    reduction_factor: int = bounded(3, least=2)
    """"halving" and "hyperband" keep one of this number of trials at each rung."""


@dataclass
class CacheConfig:
    mode: str = choice("auto", "auto", "features", "none")
    """"auto" (only where results do not change), "features" (or an error with the reason), "none"."""
    max_gb: float = bounded(10.0, above=0, infinite=True)
    """Size limit of the features in paths.cache, in 2**30 bytes; the least recently used are removed."""
    views: int | str | None = bounded(II("strategy.cached_views"), least=1, words=("all",))
    """Cached views of each augmented training image, used in turn: 1 is the image without augmentation, "all" as many
    as there are epochs. null: training images are not cached with cache=auto, and in 4 views with cache=features.
    Default: the strategy's cached_views."""


@dataclass
class DownloadConfig:
    """Downloads of data and weights."""

    timeout: float = bounded(10.0, above=0, most=3600)
    """Seconds for name resolution, connection and response header together, and for the next bytes."""
    attempts: int = bounded(5, least=1, most=1000)
    """Consecutive attempts without progress after which a transfer fails."""


@dataclass
class PathsConfig:
    data: str = literal("data")
    outputs: str = literal("outputs")
    cache: str = literal("outputs/cache")


@dataclass
class TrainConfig:
    """The whole configuration of `graft train`."""

    seed: int = bounded(0, least=0, below=2**32)
    resume: str | None = literal(None)
    optimized_metric: str = "val/acc"
    """The metric that chooses checkpoints; of images with several labels val/acc stands for val/map."""
    sweep_name: str = literal(MISSING)
    """The folder of a sweep in outputs/sweep/; the same command with the same name resumes the sweep."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    freeze: FreezeConfig = field(default_factory=FreezeConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    scheduler: SchedulerConfig = field(default_factory=SchedulerConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logger: LoggerConfig = field(default_factory=LoggerConfig)
    callbacks: CallbacksConfig = field(default_factory=CallbacksConfig)
    review: ReviewConfig = field(default_factory=ReviewConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    paths: PathsConfig = field(default_factory=PathsConfig)
    download: DownloadConfig = field(default_factory=DownloadConfig)
    search: SearchConfig = field(default_factory=SearchConfig)
    tta: bool = False
    """Test-time augmentation: the test uses the mean of the probabilities of `views`."""
    views: ViewsConfig = field(default_factory=ViewsConfig)

    def mode(self, metric: str) -> str:
        """ "max" or "min": whether a larger or a smaller value of a metric is better."""
        return direction(metric, known_directions(self.metrics.parts()))
