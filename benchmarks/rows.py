"""The rows of docs/results.md: which preset, how it is run where data or weights depart, what was published."""

from collections.abc import Iterator
from dataclasses import dataclass

NO_WEIGHTS = "needs complete ImageNet weights, which the machine at hand did not have"
CURVES = "curves only"
THREE = (0, 1, 2)
FIVE = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: the preset's, or in words what departs from it.
        preset: as in `experiment=`; "" where the defaults of `graft train` run.
        chapter: its heading.
        published: the figure of the original, "–" where there is none.
        overrides: further words of the command.
        weights: file in the weights folder that replaces torchvision's download.
        seeds: repetitions.
        departs: what differs from the preset, in plain words.
        unmeasured: why there is no figure; "" where it can be measured.
        example: the folder in examples/ that the preset is from; "" for one of conf/.
    """

    name: str
    preset: str
    chapter: str
    published: str = "–"
    overrides: tuple[str, ...] = ()
    weights: str | None = None
    seeds: tuple[int, ...] = (0,)
    departs: str = ""
    unmeasured: str = ""
    example: str = ""

    @property
    def folder(self) -> str:
        """Its folder in the folder of runs."""
        return "".join(letter if letter.isalnum() else "_" for letter in self.name)

    def reason(self) -> str:
        """Why there is no figure."""
        return self.unmeasured or "not run yet"


def _headline(lr: str) -> Row:
    """`graft train model=vgg16 strategy=finetune` at a learning rate."""
    return Row(
        f"model=vgg16 strategy=finetune, every layer, rate {lr}{' (default)' if lr == '0.003' else ''}",
        "",
        VGG16,
        overrides=("model=vgg16", "strategy=finetune", f"optimizer.lr={lr}", "trainer.max_epochs=3"),
        weights="vgg16-features.safetensors",
        seeds=THREE,
        departs=FEATURES_ONLY + " Three epochs.",
    )


def _squeezenets(chapter: str, *, data: str, seeds: tuple[int, ...]) -> Iterator[Row]:
    """Both SqueezeNets in every strategy, by the tutorial's recipe."""
    on_flowers = ("data=flowers", "data.val_fraction=0", "callbacks.checkpoint=last", "trainer.max_epochs=2")
    for version in ("1_0", "1_1"):
        for strategy in ("feature_extract", "finetune", "gradual", "scratch"):
            preset = f"hymenoptera_squeezenet1_0_{'finetune' if strategy == 'gradual' else strategy}"
            if (data, version, strategy) in {("hymenoptera", "1_0", kept) for kept in PRESET_STRATEGIES}:
                continue
            overrides = ["model=squeezenet" + version] if version == "1_1" else []
            overrides += ["strategy=gradual"] if strategy == "gradual" else []
            yield Row(
                name=f"{data}, SqueezeNet {version.replace('_', '.')}, {strategy}",
                preset=preset,
                chapter=chapter,
                overrides=(*overrides, *(on_flowers if data == "flowers" else ())),
                weights=None if strategy == "scratch" else f"squeezenet{version}-imagenet.safetensors",
                seeds=seeds if strategy in ("feature_extract", "finetune") else (0,),
                departs="The tutorial's recipe on the flowers, two epochs of all 3,130 images."
                if data == "flowers"
                else "",
            )


PRESET_STRATEGIES = ("feature_extract", "finetune", "scratch")


def _tutorial() -> Iterator[Row]:
    for network in ("resnet18", "alexnet", "vgg11_bn", "squeezenet1_0", "densenet121", "inception_v3"):
        for strategy in PRESET_STRATEGIES:
            here = network == "squeezenet1_0"
            name = f"hymenoptera_{network}_{strategy}"
            yield Row(
                name=name,
                preset=name,
                chapter="Six networks on ants and bees",
                published=CURVES,
                weights="squeezenet1_0-imagenet.safetensors" if here and strategy != "scratch" else None,
                seeds=THREE if here and strategy != "scratch" else (0,),
                unmeasured="" if here or strategy == "scratch" else NO_WEIGHTS,
            )


FEATURES_ONLY = (
    "With the weights of VGG16's convolutions only: its three linear layers start at random, so all of them train."
)
VGG16 = "VGG16 on ants and bees"
MASKS = "VGG11 on masks"
FLOWERS = "VGG16 on flowers"
CIFAR = "VGGs on CIFAR-10"
HOURS = "takes hours on two cores; see the shorter run below"
STAND_IN = (
    "Measured on a stand-in for the mask set, in which mask1 to mask5 cannot be distinguished: its ceiling is 3/7."
)
JPEG = "Measured on images that went through JPEG once."
HELD = "The process was held for 25 minutes of its seconds, while others were measured."

ROWS: tuple[Row, ...] = (
    Row(
        "mask_vgg11_scratch",
        "mask_vgg11_scratch",
        MASKS,
        "0.149 (an untrained network)",
        departs=f"{STAND_IN} {HELD}",
    ),
    Row(
        "mask_vgg11_feature_extract",
        "mask_vgg11_feature_extract",
        MASKS,
        "0.525 last, 0.599 best",
        unmeasured=NO_WEIGHTS,
    ),
    Row(
        "flowers_vgg16_feature_extract",
        "flowers_vgg16_feature_extract",
        FLOWERS,
        "0.77 (loss 0.70)",
        unmeasured=NO_WEIGHTS,
    ),
    Row(
        "flowers_vgg16_feature_extract, linear layers from random",
        "flowers_vgg16_feature_extract",
        FLOWERS,
        "0.77 with pretrained linear layers",
        weights="vgg16-features.safetensors",
        seeds=THREE,
        departs=FEATURES_ONLY + " Images' short sides were reduced to 256.",
    ),
    Row(
        "flowers_best",
        "flowers_best",
        "SqueezeNets on flowers",
        weights="squeezenet1_1-imagenet.safetensors",
        seeds=FIVE,
        departs="Images' short sides were reduced to 256.",
    ),
    *_squeezenets("SqueezeNets on flowers", data="flowers", seeds=(0,)),
    *_tutorial(),
    Row(
        "hymenoptera_best",
        "hymenoptera_best",
        "SqueezeNets on ants and bees",
        weights="squeezenet1_1-imagenet.safetensors",
        seeds=FIVE,
    ),
    *_squeezenets("SqueezeNets on ants and bees", data="hymenoptera", seeds=THREE),
    Row(
        "hymenoptera_vgg16_head",
        "hymenoptera_vgg16_head",
        VGG16,
        "0.4967 before, 0.9608 after one epoch",
        unmeasured=NO_WEIGHTS,
    ),
    Row(
        "hymenoptera_vgg16_discriminative",
        "hymenoptera_vgg16_discriminative",
        VGG16,
        "none that counts",
        unmeasured=NO_WEIGHTS,
    ),
    Row(
        "hymenoptera_vgg16_head, one linear layer on pooled convolutions",
        "hymenoptera_vgg16_head",
        VGG16,
        "0.9608 with the pretrained classifier",
        overrides=("model.classifier=pooled", "optimizer.lr=0.01", "trainer.max_epochs=5"),
        weights="vgg16-features.safetensors",
        seeds=THREE,
        departs="Frozen convolutions, average pool, BatchNorm, one linear layer. Five epochs at 0.01.",
    ),
    Row(
        "hymenoptera_vgg16_head, linear layers from random",
        "hymenoptera_vgg16_head",
        VGG16,
        "0.9608 with pretrained linear layers",
        overrides=("freeze=features", "trainer.max_epochs=5"),
        weights="vgg16-features.safetensors",
        seeds=THREE,
        departs=FEATURES_ONLY + " Five epochs.",
    ),
    *(_headline(lr) for lr in ("0.01", "0.003", "0.001")),
    Row(
        "cifar10_vgg16",
        "cifar10_vgg16",
        CIFAR,
        "0.75 (training loss 1.25 after 8 epochs, 0.030 after 50)",
        unmeasured=HOURS,
    ),
    Row(
        "cifar10_vgg16, the first 3 epochs",
        "cifar10_vgg16",
        CIFAR,
        "training loss 1.25 after 8 epochs",
        overrides=("trainer.max_epochs=3",),
        departs=JPEG,
    ),
    Row(
        "cifar10_vgg16_modern",
        "cifar10_vgg16_modern",
        CIFAR,
        "peers: 0.926 (kuangliu), 0.942 (chenyaofo), 200 epochs each",
        unmeasured=HOURS,
    ),
    Row(
        "cifar10_vgg16_modern in 2 epochs",
        "cifar10_vgg16_modern",
        CIFAR,
        "peers: 0.926 (kuangliu), 0.942 (chenyaofo), 200 epochs each",
        overrides=("trainer.max_epochs=2",),
        departs=JPEG,
    ),
    Row(
        "cifar10_speed",
        "cifar10_speed",
        CIFAR,
        "peers: 0.94 in a minute on a GPU",
        departs=JPEG + " Six views.",
        example="cifar10_speed",
    ),
)
