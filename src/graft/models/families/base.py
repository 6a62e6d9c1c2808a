"""What Graft asks of each family of networks: its own, torchvision's, timm's, and those that users bring."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from graft.data.preprocessing import Preprocessing
from graft.errors import ConfigError, WeightsError
from graft.models.configurations import Facts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from graft.models.layouts import Stage
    from graft.models.published import Published
    from graft.models.recipe import Recipe


@dataclass(frozen=True)
class Constructor:
    """How a network is made, with random weights, outside of a Graft run.

    Attributes:
        library: the package to import: "torchvision", "timm", "graft" or a user's.
        line: the Python expression that makes it.
        make: the same, called.
        removed: names of modules that are replaced by the identity after that.
        arguments: of the call, as plain values, where the library's own function makes the network.
    """

    library: str
    line: str
    make: Callable[[], "nn.Module"]
    removed: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def filled(self, weights: "Mapping[str, Tensor]") -> "nn.Module":
        """The library's network with these weights, in evaluation mode."""
        from torch import nn

        network = self.make()
        for name in self.removed:
            network.set_submodule(name, nn.Identity())
        network.load_state_dict(weights)
        return network.eval()


class ModelFamily(Protocol):
    """Networks that are described, built, cut into stages and loaded in the same way.

    A family is one module of `graft.models.families` with an instance called FAMILY. Importing that module must not
    import torch; the methods above `build` must not either, unless documented. A family overrides what differs.
    """

    resized_by_weights: bool = False
    """Whether a network of fixed input size is built for the size that its weights were made for, as a ViT is."""

    # -- before a network is built

    def facts(self, recipe: "Recipe") -> Facts:
        """The network's facts with the recipe's changes applied.

        Raises:
            ConfigError: an unknown network, a key that it does not have; names the key and the nearest right value.
        """
        ...

    def torchvision_name(self, recipe: "Recipe") -> str | None:
        """The torchvision network whose published weights fit this network's convolutions; None where there is none."""
        return None

    def has_default_weights(self, recipe: "Recipe") -> bool:
        """Whether model.weights=default may name weights; whether they exist may be known to the library alone."""
        return self.torchvision_name(recipe) is not None

    def bundled_weights(self, recipe: "Recipe") -> Path | None:
        """The weight file that comes with Graft; None where there is none."""
        return None

    def known_preprocessing(self, recipe: "Recipe", weights: str | None) -> Preprocessing | None:
        """What evaluation does to an image, as far as that is known without importing torch; else None."""
        return None

    def preprocessing(self, recipe: "Recipe") -> Preprocessing:
        """What evaluation does to an image where the weights do not define it; may import the network's library."""
        return usual_preprocessing(self.facts(recipe))

    def fixed_input_size(self, recipe: "Recipe") -> int | None:
        """Side, in pixels, of the only square image that the network takes; None where it takes several sizes.

        May import the network's library.
        """
        facts = self.facts(recipe)
        return facts.input_size if facts.fixed_size else None

    def foreign_code(self, recipe: "Recipe") -> Iterator[str]:
        """Dotted names of the code of other packages that building runs, for a recipe from an untrusted file.

        Each is imported only after the caller, which must refuse untrusted packages, asks for the next.
        """
        return iter(())

    # -- building

    def build(self, recipe: "Recipe", num_classes: int) -> "nn.Module":
        """The network, initialised from torch's global generator.

        Shapes: images [B, C, H, W] -> logits [B, num_classes], with C = 3 unless `recipe.channels` is another number.

        Raises:
            ConfigError: it cannot be built with these options.
        """
        ...

    def constructor(self, recipe: "Recipe", network: "nn.Module", num_classes: int) -> Constructor:
        """How a user of an exported state dict makes this network.

        Args:
            recipe: of the network.
            network: built by it.
            num_classes: length of its logits.
        """
        options = {key: value for key, value in recipe.to_dict().items() if value not in (None, {})}
        line = f"graft.models.build_network(graft.models.Recipe(**{options}), {num_classes})"
        return Constructor("graft", line, lambda: self.build(recipe, num_classes))

    # -- parts of a built network

    def head(self, network: "nn.Module") -> tuple[str, ...]:
        """Names of the modules that compute the logits, the main head first: by default the last Linear or Conv2d.

        Raises:
            ConfigError: the network has neither a linear layer nor a convolution.
        """
        from torch import nn

        layers = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        if not layers:
            raise ConfigError(f"{type(network).__name__}: no linear layer or convolution that could be its head.")
        return (layers[-1],)

    def reset_head(self, network: "nn.Module") -> None:
        """Re-initialise the head from torch's global generator, as a new `nn.Linear` or `nn.Conv2d` is."""
        for name in self.head(network):
            network.get_submodule(name).reset_parameters()  # type: ignore[operator]

    def first_conv(self, network: "nn.Module") -> str | None:
        """Name of the convolution that reads the image: by default the first; None if there is none."""
        from torch import nn

        return next((name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)), None)

    def classifier(self, network: "nn.Module") -> tuple[str, ...]:
        """Names of the modules between trunk and head, which a file of the trunk's weights may lack."""
        return ()

    def bounds(self, network: "nn.Module") -> tuple[str, ...]:
        """Names of modules above the head that keep logits from being negative; none by default."""
        return ()

    def auxiliary(self, network: "nn.Module") -> tuple[str, ...]:
        """Names of the auxiliary classifiers, which only training uses and which a weight file may lack."""
        return ()

    def stages(self, network: "nn.Module") -> "list[Stage]":
        """The parts that are frozen and unfrozen as a whole, from input to output; the last is `head`."""
        from graft.models.layouts import generic

        return generic(network, self.head(network))

    # -- weights

    def published_weights(self, recipe: "Recipe", weights: str) -> "Published | None":
        """The published weights that `weights` names; None where it names a file or bundled weights.

        Raises:
            WeightsError: "default" for a network without published weights.
        """
        from graft.models.weights.torchvision import published_weights

        name = self.torchvision_name(recipe)
        if name is not None:
            return published_weights(name, weights)
        if weights == "default":
            raise WeightsError(
                f"model.weights=default: there are no weights for {recipe.name} as configured. "
                "Train it from random weights (strategy=scratch), or give a file: model.weights=FILE."
            )
        return None

    def preprocessing_of_file(self, recipe: "Recipe", file: Path) -> Preprocessing | None:
        """The preprocessing of a copy of a published weight file, recognised by its name; else None."""
        from graft.models.weights.torchvision import preprocessing_of_copy

        name = self.torchvision_name(recipe)
        return None if name is None else preprocessing_of_copy(name, file)

    def convert(self, network: "nn.Module", recipe: "Recipe", tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """The tensors of a weight file under the network's names and in its shapes, as far as that can be done.

        Older names become today's, position embeddings are interpolated to the network's input size.
        """
        return dict(tensors)

    def classes_of_head(self, recipe: "Recipe", tensors: "Mapping[str, Tensor]") -> tuple[str, ...] | None:
        """The class names of a weight file that does not contain them, from the size of its head; None if unknown."""
        from graft.models.weights.torchvision import imagenet_classes_of

        return imagenet_classes_of(tensors) if self.torchvision_name(recipe) else None


def usual_preprocessing(facts: Facts) -> Preprocessing:
    """The network's normalisation at its input size, from a larger image by a centre crop.

    The image is resized to 8/7 of the input size (224 from 256, 299 from 342), without a margin at 64 pixels or less.
    """
    size = facts.input_size
    return Preprocessing(
        input_size=size, resize_size=size if size <= 64 else round(size * 8 / 7), mean=facts.mean, std=facts.std
    )


def at_input_size(preprocessing: Preprocessing, size: int | None) -> Preprocessing:
    """`preprocessing` for images of `size` pixels, with the same relative margin; unchanged where `size` is None."""
    if size is None:
        return preprocessing
    margin = preprocessing.resize_size / min(preprocessing.size)
    return replace(preprocessing, input_size=size, resize_size=round(size * margin))


def take_channels(network: "nn.Module", first_conv: str | None, recipe: "Recipe") -> None:
    """Replace the first convolution of a network for RGB by a new one, as torch initialises it, for other channels.

    Raises:
        ConfigError: it has no first convolution that reads 3 channels.
    """
    from torch import nn

    if recipe.channels is None:
        return
    old = None if first_conv is None else network.get_submodule(first_conv)
    if first_conv is None or not isinstance(old, nn.Conv2d) or (old.in_channels, old.groups) != (3, 1):
        raise ConfigError(
            f"data.channels={recipe.channels} and model={recipe.name} disagree: it has no first convolution of 3 "
            "channels that could be replaced.\nChoose another network."
        )
    new = type(old)(
        recipe.channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        stride=old.stride,  # type: ignore[arg-type]
        padding=old.padding,  # type: ignore[arg-type]
        dilation=old.dilation,  # type: ignore[arg-type]
        bias=old.bias is not None,
        padding_mode=old.padding_mode,
    )
    network.set_submodule(first_conv, new)


VGG_OPTIONS = ("table", "batch_norm", "classifier", "average_pool", "hidden")


def refuse_vgg_options(recipe: "Recipe", library: str) -> None:
    """Refuse options that only the VGGs built from a table have.

    Raises:
        ConfigError: names the option and the library that the network is from.
    """
    for key in VGG_OPTIONS:
        if getattr(recipe, key) is not None:
            raise ConfigError(
                f"model.{key}: only VGGs built by a table have it, and model.name={recipe.name} is {library}'s own. "
                f"Leave model.{key} out, or choose a VGG."
            )
