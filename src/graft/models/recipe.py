"""A network as plain values: what a config says and a checkpoint carries. Imports no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from graft.data.preprocessing import LARGEST_INPUT, Preprocessing
from graft.errors import ConfigError, RecordError, nearest, pip_install
from graft.models.configurations import (
    CLASSIFIERS,
    NETWORKS,
    SIZED,
    TABLES,
    TORCHVISION_VGGS,
    Facts,
    M,
    Table,
    known_models,
    smallest_input,
    timm_architectures,
    torchvision_classifiers,
)
from graft.system.values import Check, among, either, flag, integer, line, number, optional, read_values, sequence

INSTALL_TIMM = pip_install("timm")
VGG_ONLY = ("table", "batch_norm", "classifier", "average_pool")

RECORDED: dict[str, Check] = {
    "name": line(200),
    "table": optional(sequence(either(integer(1, 65_536), among(M)), 1000, least=1)),
    "batch_norm": optional(flag),
    "classifier": optional(among(*CLASSIFIERS)),
    "dropout": optional(number(0, 1)),
    "input_size": optional(integer(1, LARGEST_INPUT)),
    "average_pool": optional(integer(0, 64)),
    "family": optional(among("timm")),
}
"""What a recipe may be that a file brings; one of the user's own configuration has no such limits."""


@dataclass(frozen=True)
class Recipe:
    """A name and what departs from that network as it is known; None means as known.

    Attributes:
        name: one of `known_models()`, or any name when `table` is given (a VGG of one's own); with family="timm" one
            of timm's, with or without the tag of its weights ("resnet50", "resnet50.a1_in1k").
        table: convolutions (channels) and pools ("M") of a VGG, from input to output.
        batch_norm: BatchNorm after every convolution of a VGG.
        classifier: on top of a VGG: "vgg" (three linear layers), "linear" (one on the flattened features)
            or "pooled" (average pool, BatchNorm, one linear layer).
        dropout: probability of the dropout layers, in [0, 1).
        input_size: side of the square image, in pixels.
        average_pool: side of the adaptive average pool under a VGG's classifier; 0 is none.
        family: "timm" for a name of timm's; None for all others.
    """

    name: str
    table: tuple[int | str, ...] | None = None
    batch_norm: bool | None = None
    classifier: str | None = None
    dropout: float | None = None
    input_size: int | None = None
    average_pool: int | None = None
    family: str | None = None

    def __post_init__(self) -> None:
        if self.table is not None:
            object.__setattr__(self, "table", tuple(self.table))

    def to_dict(self) -> dict[str, Any]:
        """Plain types only: what a checkpoint, a summary or a JSON file can hold."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "recipe") -> "Recipe":
        """The inverse of `to_dict`; missing keys are as known.

        Args:
            values: as a file holds them.
            source: the file, for messages.

        Raises:
            ConfigError: a key that no recipe has; names the nearest.
            RecordError: no name, or a value of another type or beyond its limit.
        """
        names = [field.name for field in fields(cls)]
        for key in values:
            if key not in names:
                shown = ascii(str(key)[:80])[1:-1]
                raise ConfigError(f"model.{shown}: no such key.{nearest(shown, names)} There are {', '.join(names)}.")
        checked = read_values(values, RECORDED, source, "recipe")
        if "name" not in checked:
            raise RecordError(f"{source}: recipe has no name.")
        return cls(**checked)

    def facts(self) -> Facts:
        """The network described whole: its row of `NETWORKS` with this recipe's departures in place.

        Raises:
            ConfigError: an unknown name, a table that is none, a key this network does not have, a number out
                of range, or an input smaller than the pools allow; names the key and the nearest right value.
        """
        known = self._known()
        self._refuse_keys(known)
        departures = {
            key: value for key in (*VGG_ONLY, "dropout", "input_size") if (value := getattr(self, key)) is not None
        }
        if self.table is not None:
            departures["table"] = checked_table(self.table)
            departures["min_size"] = smallest_input(departures["table"])
        facts = replace(known, **departures)
        _check(facts)
        if self.average_pool is not None and facts.classifier == "pooled":
            raise ConfigError(
                f"model.average_pool={self.average_pool} and model.classifier=pooled disagree: "
                "pooled averages the whole map. Leave one of them out."
            )
        return facts

    def demand_input(self, size: int, key: str, side: int | None = None) -> None:
        """Raise ConfigError, naming `key`, unless this network takes images of `size` pixels a side.

        Args:
            size: what is wanted.
            key: who wants it.
            side: the only size it takes where its library had to be asked, see `graft.models.built_for`.
        """
        facts = self.facts()
        if side is None and facts.fixed_size:
            side = facts.input_size
        if size < facts.min_size:
            raise ConfigError(
                f"{key}={size} and model={self.name} disagree: this network halves its input so often that it "
                f"needs at least {facts.min_size}x{facts.min_size} pixels.\n"
                f"Give {key}={facts.min_size} or more, or a network with fewer pools."
            )
        if side not in (None, size):
            raise ConfigError(
                f"{key}={size} and model={self.name} disagree: this network is built for images of exactly "
                f"{side}x{side} pixels.\nGive model.input_size={size} too, or leave {key} out."
            )

    def usual_preprocessing(self) -> Preprocessing:
        """What evaluation does to an image where weights say nothing of it; timm's networks say it themselves.

        ImageNet's mean and standard deviation (CIFAR-10's for the 32-pixel VGGs) at the network's input size, resized
        to 8/7 of it before the centre crop (224 from 256, 299 from 342) and without margin at 64 pixels or less.
        torchvision's weights of the networks in `NETWORKS` say the same.
        """
        facts = self.facts()
        size = facts.input_size
        resize = size if size <= 64 else round(size * 8 / 7)
        return Preprocessing(input_size=size, resize_size=resize, mean=facts.mean, std=facts.std)

    def torchvision_name(self) -> str | None:
        """The torchvision network whose weights have these convolutions; None where there is none.

        A VGG is known by its table, so `name: vgg16, batch_norm: true` takes the weights of vgg16_bn.
        """
        facts = self.facts()
        if facts.family == "torchvision":
            return self.name
        if facts.family == "timm":
            return None
        for name, (letter, batch_norm) in TORCHVISION_VGGS.items():
            if (facts.table, facts.batch_norm) == (TABLES[letter], batch_norm):
                return name
        return None

    def _known(self) -> Facts:
        if self.family is not None:
            return self._known_to_timm()
        if self.name in NETWORKS:
            return NETWORKS[self.name]
        if self.table is not None:
            return NETWORKS["vgg_custom"]
        if self.name in torchvision_classifiers():
            return Facts("torchvision", sized=self.name.startswith(tuple(SIZED)))
        of_timm = self.name.partition(".")[0] in timm_architectures()
        near = f" Did you mean model=timm model.name={self.name}?" if of_timm else nearest(self.name, known_models())
        raise ConfigError(
            f'model.name="{self.name}": no such network.{near} '
            f"There are {', '.join(NETWORKS)}, every other torchvision classifier by its name, "
            "any name with a model.table of layers, and with model=timm every network of timm."
        )

    def _known_to_timm(self) -> Facts:
        if self.family != "timm":
            raise ConfigError(f'model.family="{self.family}": it is timm, or null for all other networks.')
        architectures = timm_architectures()
        if not architectures:
            raise ConfigError(f"model=timm model.name={self.name}: needs timm. Install it: {INSTALL_TIMM}")
        if (architecture := self.name.partition(".")[0]) not in architectures:
            raise ConfigError(
                f'model.name="{self.name}": timm has no such network.{nearest(architecture, architectures)} '
                "All are listed at https://huggingface.co/timm, and by timm.list_models()."
            )
        return Facts("timm")

    def _refuse_keys(self, known: Facts) -> None:
        """A layer table and what goes with it is for the VGGs that are built by one."""
        ready_made = known.family == "vgg_speed"
        refused = {"vgg": (), "vgg_speed": (*VGG_ONLY, "dropout")}.get(known.family, VGG_ONLY)
        for key in refused:
            if getattr(self, key) is not None:
                owner = "ready-made" if ready_made else f"{known.family}'s own"
                raise ConfigError(
                    f"model.{key}: only VGGs built by a table have it, and model.name={self.name} is {owner}. "
                    f"Leave model.{key} out, or choose {'another' if ready_made else 'a'} VGG."
                )


def checked_table(layers: Sequence[int | str]) -> Table:
    """`layers` as a table, each entry a positive number of channels or "M".

    Raises:
        ConfigError: empty, a pool first, or an entry that is neither; names its position.
    """
    if not layers:
        raise ConfigError("model.table: empty; name at least one convolution, as in model.table=[64,M,128,M].")
    for position, layer in enumerate(layers):
        if layer != M and (isinstance(layer, bool) or not isinstance(layer, int) or layer < 1):
            raise ConfigError(
                f"model.table: entry {position} is {layer!r}; each is a number of channels or M (max-pool)."
            )
    if layers[0] == M:
        raise ConfigError("model.table: begins with a pool; the first entry is a convolution's number of channels.")
    return tuple(layers)  # type: ignore[arg-type]


def _check(facts: Facts) -> None:
    if facts.classifier is not None and facts.classifier not in CLASSIFIERS:
        raise ConfigError(
            f"model.classifier={facts.classifier}: unknown.{nearest(facts.classifier, CLASSIFIERS)} "
            f"There are {', '.join(CLASSIFIERS)}."
        )
    if facts.dropout is not None and not 0 <= facts.dropout < 1:
        raise ConfigError(f"model.dropout={facts.dropout}: a probability in [0, 1) is wanted.")
    if facts.average_pool is not None and facts.average_pool < 0:
        raise ConfigError(f"model.average_pool={facts.average_pool}: 0 (none) or the side of the pooled map is wanted.")
    if facts.input_size < facts.min_size:
        raise ConfigError(
            f"model.input_size={facts.input_size}: its pools need {facts.min_size} pixels or more. "
            f"Set model.input_size={facts.min_size} or more, or choose a network with fewer pools."
        )
