"""Which file `model.weights` names: a library's published weights, bundled weights, or a file."""

from pathlib import Path

from graft.errors import WeightsError, nearest
from graft.models.configurations import BUNDLED
from graft.models.published import Published
from graft.models.recipe import Recipe
from graft.models.registry import family_of
from graft.models.weights.hugging_face import on_hub
from graft.system.files import why_unreadable

HUB_FILE = "model.safetensors"
"""The weights in a folder that `graft export format=hub` has written."""


def find_published(recipe: Recipe, weights: str) -> Published | None:
    """The published weights that `weights` names; None where it names a file or bundled weights.

    Raises:
        WeightsError: "default" for a network without published weights.
    """
    return family_of(recipe).published_weights(recipe, weights)


def existing_file(recipe: Recipe, weights: str) -> Path:
    """The file that `weights` names; of a repository of the Hugging Face hub or a folder like one, its weights.

    Raises:
        NotAvailable: weights on the hub that are not on this machine and cannot be downloaded.
        WeightsError: it does not exist; names the nearest in its folder, or the networks with bundled weights.
    """
    if weights == "bundled":
        file = family_of(recipe).bundled_weights(recipe)
        if file is None:
            bundled = ", ".join(sorted(path.stem for path in BUNDLED.glob("*.safetensors"))) or "no network"
            raise WeightsError(
                f"model.weights=bundled: Graft has no weights for model={recipe.name}, only for {bundled}."
            )
        return file
    if (hub := on_hub(weights)) is not None:
        return hub.fetch(f"weights {weights}")
    file = Path(weights).expanduser()
    if file.is_dir() and (file / HUB_FILE).is_file():
        return file / HUB_FILE
    if reason := why_unreadable(file):
        neighbours = [path.name for path in file.parent.iterdir()] if file.parent.is_dir() else []
        words = ["default", "bundled", *(neighbours if file.name != weights or neighbours else [])]
        raise WeightsError(
            f"model.weights={weights}: {reason}.{nearest(file.name, words)} "
            "It must be default, bundled, null, hf://ORG/NAME, or a .pth, .safetensors or .ckpt file."
        )
    return file
