"""timm's networks by name, with a head for other classes (Wightman 2019). Importing this imports neither torch nor
timm."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from graft.data.preprocessing import Preprocessing
from graft.errors import ConfigError, WeightsError, nearest, pip_install
from graft.models.configurations import Facts, check_dropout_and_size, registered_models
from graft.models.families.base import Constructor, ModelFamily, at_input_size, refuse_vgg_options
from graft.models.layouts import Stage, belongs, by_max_pool, cut_into_stages, generic, uniform_parts

if TYPE_CHECKING:
    from timm.models import PretrainedCfg
    from torch import Tensor, nn

    from graft.models.published import Address, Published
    from graft.models.recipe import Recipe

INSTALL = pip_install("timm")
IMAGENET_1K = "imagenet-1k"


def network(name: str, *, num_classes: int, dropout: float | None = None, input_size: int | None = None) -> "nn.Module":
    """timm's network `name` with random weights and a head for `num_classes` classes, as `timm.create_model` makes it.

    Shapes: images [B, 3, H, W] -> logits [B, num_classes].

    Args:
        name: with or without the tag of its weights: "resnet50", "resnet50.a1_in1k".
        num_classes: length of the logits.
        dropout: timm's `drop_rate`, before the head, in [0, 1).
        input_size: side of the image, in pixels; changes networks with position embeddings or windows.

    Raises:
        ConfigError: an unknown name or tag, a network without a head, or one that cannot be built with these options.
    """
    from graft.models.recipe import Recipe

    return FAMILY.build(Recipe(name, dropout=dropout, input_size=input_size, family="timm"), num_classes)


@cache
def architectures() -> frozenset[str]:
    """Names of timm's networks without the tags of their weights; empty where timm is not installed."""
    return registered_models("timm")


class Timm(ModelFamily):
    """Every network of timm that has a head for classes and takes square images."""

    resized_by_weights = True

    def facts(self, recipe: "Recipe") -> Facts:
        names = architectures()
        if not names:
            raise ConfigError(f"model=timm model.name={recipe.name}: needs timm. Install it: {INSTALL}")
        if (architecture := recipe.name.partition(".")[0]) not in names:
            raise ConfigError(
                f'model.name="{recipe.name}": timm has no such network.{nearest(architecture, names)} '
                "All are listed at https://huggingface.co/timm, and by timm.list_models()."
            )
        refuse_vgg_options(recipe, "timm")
        changes = {key: value for key in ("dropout", "input_size") if (value := getattr(recipe, key)) is not None}
        facts = replace(Facts(), **changes)
        check_dropout_and_size(facts)
        return facts

    def has_default_weights(self, recipe: "Recipe") -> bool:
        return True

    def preprocessing(self, recipe: "Recipe") -> Preprocessing:
        self.facts(recipe)
        return at_input_size(preprocessing_of(pretrained_config(recipe.name)), recipe.input_size)

    def fixed_input_size(self, recipe: "Recipe") -> int | None:
        self.facts(recipe)
        config = pretrained_config(recipe.name)
        return (recipe.input_size or config.input_size[-1]) if config.fixed_input_size else None

    def build(self, recipe: "Recipe", num_classes: int) -> "nn.Module":
        self.facts(recipe)
        config = pretrained_config(recipe.name)
        if not config.classifier:
            raise ConfigError(f"model=timm model.name={recipe.name}: has no head for classes. Choose a classifier.")
        try:
            built = _timm().create_model(recipe.name, num_classes=num_classes, **_builder_arguments(recipe, config))
            if recipe.input_size is not None:
                _run_once(built, recipe.input_size, recipe.channels or 3)
        except (TypeError, ValueError, RuntimeError, AssertionError) as error:
            options = [f"model.{key}={value}" for key in ("input_size", "dropout") if (value := getattr(recipe, key))]
            options += [] if recipe.channels is None else [f"data.channels={recipe.channels}"]
            raise ConfigError(
                f"model=timm model.name={recipe.name} {' '.join(options)}: timm cannot build it with these options "
                f"({error})."
            ) from error
        return built

    def constructor(self, recipe: "Recipe", network: "nn.Module", num_classes: int) -> Constructor:
        from graft.models.families.torchvision import call_line

        arguments = {"num_classes": num_classes, **_builder_arguments(recipe, pretrained_config(recipe.name))}
        return Constructor(
            "timm",
            call_line("timm.create_model", recipe.name, arguments),
            lambda: _timm().create_model(recipe.name, **arguments),
            arguments=arguments,
        )

    def head(self, network: "nn.Module") -> tuple[str, ...]:
        """As timm's configuration of the network has it; several where a network was distilled."""
        return _classifiers(getattr(network, "pretrained_cfg", {})) or super().head(network)

    def first_conv(self, network: "nn.Module") -> str | None:
        name = getattr(network, "pretrained_cfg", {}).get("first_conv")
        return name if isinstance(name, str) and name else super().first_conv(network)

    def stages(self, network: "nn.Module") -> list[Stage]:
        return by_max_pool(network, self.head(network)) if type(network).__name__ == "VGG" else _grouped(network)

    def published_weights(self, recipe: "Recipe", weights: str) -> "Published | None":
        from graft.models.published import Published, TorchHub
        from graft.models.weights.hugging_face import HuggingFace

        if weights != "default":
            return None
        config = pretrained_config(recipe.name)
        address: Address
        if config.hf_hub_id:
            address = HuggingFace(config.hf_hub_id)
            if config.hf_hub_filename:
                address = replace(address, files=(config.hf_hub_filename,))
        elif config.url:
            address = TorchHub(config.url if isinstance(config.url, str) else config.url[0])
        else:
            tagged = _timm().list_pretrained(f"{recipe.name.partition('.')[0]}.*")
            raise WeightsError(
                f"model.weights=default: timm has no weights for {recipe.name}"
                + (f"; it has for {', '.join(tagged)}. " if tagged else ". ")
                + "Train it from random weights (strategy=scratch), or give a file: model.weights=FILE."
            )
        name = ".".join(filter(None, (config.architecture, config.tag)))
        return Published(
            name=f"timm {name}",
            title=f"timm's weights {name}",
            address=address,
            preprocessing=preprocessing_of(config),
            classes=_classes_of(config),
        )

    def convert(self, network: "nn.Module", recipe: "Recipe", tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """Unless they fit, timm converts them, as it does when it loads weights.

        Names in other libraries' files are translated, position embeddings interpolated. The first convolution keeps
        its number of channels. Tensors that timm cannot convert are returned as they are, so that loading names what
        does not fit.
        """
        apart = (*self.head(network), *filter(None, [self.first_conv(network) if recipe.channels else None]))
        if _fits(network, apart, tensors):
            return dict(tensors)
        config = pretrained_config(recipe.name)
        classes = _rows(tensors, self.head(network)) or config.num_classes
        overlay = {"state_dict": dict(tensors), "num_classes": classes, "custom_load": False}
        arguments = _builder_arguments(replace(recipe, channels=None), config)
        arguments |= {"pretrained_cfg_overlay": overlay, "num_classes": classes}
        try:
            return _timm().create_model(recipe.name, pretrained=True, **arguments).state_dict()
        except Exception:  # converting the file of another network may fail in any way
            return dict(tensors)

    def classes_of_head(self, recipe: "Recipe", tensors: "Mapping[str, Tensor]") -> tuple[str, ...] | None:
        config = pretrained_config(recipe.name)
        return _classes_of(config) if _rows(tensors, _classifiers(config)) == config.num_classes else None


def _timm() -> Any:
    """timm itself.

    Raises:
        ConfigError: it cannot be imported.
    """
    try:
        import timm
    except ImportError as error:
        raise ConfigError(
            f"model=timm: needs timm, which cannot be imported ({error}). Install it: {INSTALL}"
        ) from error
    return timm


@cache
def pretrained_config(name: str) -> "PretrainedCfg":
    """timm's description of `name` and the weights of its tag (without one: of its default tag).

    Raises:
        ConfigError: an unknown tag (names the nearest), or a network that takes no square images.
    """
    timm = _timm()
    try:
        config = timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:
        known = timm.list_models(f"{name.partition('.')[0]}.*", include_tags=True)
        raise ConfigError(
            f'model.name="{name}": timm has no weights of that tag.{nearest(name, known)} There are {", ".join(known)}.'
        ) from error
    if config is None:
        return timm.models.PretrainedCfg()
    height, width = config.input_size[1:]
    if height != width:
        raise ConfigError(f'model.name="{name}": takes images of {height}x{width} pixels; Graft feeds square ones.')
    return config


def preprocessing_of(config: "PretrainedCfg") -> Preprocessing:
    """What evaluation does to an image, as timm's own `create_transform` does.

    Where timm pads to keep the aspect ratio, or squashes and then crops, the whole image is squashed.
    """
    size = config.input_size[-1]
    return Preprocessing.from_dict(
        {
            "input_size": size,
            "resize_size": int(size / (config.crop_pct or 0.875)),
            "fit": "squash" if config.crop_mode in ("squash", "border") else "crop",
            "mean": tuple(config.mean),
            "std": tuple(config.std),
            "interpolation": config.interpolation,
        },
        "timm",
    )


def _classes_of(config: "PretrainedCfg") -> tuple[str, ...] | None:
    """Class names of the weights: ImageNet's, or those of one of its larger sets; else None."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    from graft.models.weights.torchvision import imagenet_classes

    subset = infer_imagenet_subset({"num_classes": config.num_classes})
    if subset == IMAGENET_1K:
        return imagenet_classes()
    return tuple(ImageNetInfo(subset).label_descriptions()) if subset else None


def _classifiers(config: "PretrainedCfg | Mapping[str, Any]") -> tuple[str, ...]:
    """Names of the modules that compute the logits; more than one where a network was distilled."""
    names = config.get("classifier") if isinstance(config, Mapping) else config.classifier
    return (names,) if isinstance(names, str) else tuple(names or ())


def _run_once(network: "nn.Module", size: int, channels: int) -> None:
    """Evaluate one black image: only then do some networks notice that their windows do not fit into the map."""
    import torch

    with torch.no_grad():
        network.eval()(torch.zeros(1, channels, size, size, device=next(network.parameters()).device))
    network.train()


def _builder_arguments(recipe: "Recipe", config: "PretrainedCfg") -> dict[str, Any]:
    """The recipe's changes to the network, as arguments of timm's builder."""
    sized = recipe.input_size is not None and config.fixed_input_size
    given = {"img_size": recipe.input_size if sized else None, "drop_rate": recipe.dropout, "in_chans": recipe.channels}
    return {name: value for name, value in given.items() if value is not None}


def _fits(network: "nn.Module", apart: tuple[str, ...], tensors: "Mapping[str, Tensor]") -> bool:
    """Whether the trunk is complete, and nothing else is there but modules `apart`, of any size."""
    expected = {key: tuple(value.shape) for key, value in network.state_dict().items() if not belongs(key, apart)}
    found = {key: tuple(value.shape) for key, value in tensors.items() if not belongs(key, apart)}
    return expected == found


def _rows(tensors: "Mapping[str, Tensor]", head: tuple[str, ...]) -> int:
    """Number of classes of the first head in `tensors`; 0 for none."""
    return next((len(tensors[key]) for name in head if (key := f"{name}.weight") in tensors), 0)


def _grouped(network: "nn.Module") -> list[Stage]:
    """The parts that timm's own `group_matcher` groups, from input to output; what it leaves out is above the trunk."""
    from timm.models import group_parameters

    try:
        order = group_parameters(network, network.group_matcher(coarse=True), reverse=True)  # type: ignore[operator]
    except (AttributeError, AssertionError):  # a few have none, or none this coarse
        return generic(network, FAMILY.head(network))
    head = FAMILY.head(network)
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    groups: dict[str, int] = {}
    largest: dict[int, tuple[int, str]] = {}
    group = -1
    for name in uniform_parts(network, "", lambda key: (order[key], belongs(key, head))):
        inside = [key for key in sizes if belongs(key, (name,))]
        group = groups[name] = order[inside[0]] if inside else group
        size = sum(sizes[key] for key in inside)
        largest[group] = max(largest.get(group, (-1, "")), (size, name), key=itemgetter(0))
    titles = {group: name for group, (_, name) in largest.items()} | {0: "stem"}
    top = order[f"{head[0]}.weight"]
    trunk = {name: titles[group] for name, group in groups.items() if group != top}
    return cut_into_stages(network, head, sorted(groups, key=lambda name: groups[name]), trunk)


FAMILY = Timm()
