"""A repository of the Hugging Face Hub: weights, config.json and a model card, in a folder or uploaded."""

import importlib.util
import json
import logging
import re
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from graft.errors import ConfigError, ExportError, pip_install
from graft.export.format import decisions_of_network
from graft.export.state_dict import Safetensors
from graft.models.recipe import Recipe
from graft.system.files import write_atomically

if TYPE_CHECKING:
    from graft.export.formats import ExportedNetwork

log = logging.getLogger("graft")

CONFIG, CARD = "config.json", "README.md"
REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


class Hub(Safetensors):
    """model.safetensors, config.json and README.md (a model card made from the run's summary) in a folder.

    `model.weights=FOLDER` and `checkpoint=FOLDER` read it, and so does timm where the network is timm's. Where the data
    were on the machine of the run is not in it.

    Args:
        repo: ORG/NAME to upload the folder to, with the token of `hf auth login` or HF_TOKEN; None: it is not uploaded.
        private: whether a new repository is private.
        license: of the weights, as the hub abbreviates it, e.g. "cc-by-4.0"; None: a field of the card to fill in.

    Raises:
        ConfigError: `repo` is no name of a repository, or huggingface_hub is not installed.
        ExportError: (`publish`) the upload fails.
    """

    name = "model"

    def __init__(self, repo: str | None = None, private: bool = True, license: str | None = None) -> None:
        if repo is not None:
            if not REPOSITORY.fullmatch(repo):
                raise ConfigError(f"format.hub.repo={repo}: must be ORG/NAME.")
            if importlib.util.find_spec("huggingface_hub") is None:
                raise ConfigError(f"format.hub.repo={repo}: needs huggingface_hub: {pip_install('hf')}")
        self.repo, self.private, self.license = repo, private, license

    def describe(
        self, network: "ExportedNetwork", file: Path, description: Mapping[str, Any], summary: Mapping[str, Any]
    ) -> None:
        folder = file.parent
        config = json.dumps(config_of(network), indent=2, ensure_ascii=False)
        write_atomically(folder / CONFIG, f"{config}\n".encode())
        write_atomically(folder / CARD, model_card(network, summary, self.license, self.repo).encode())

    def publish(self, network: "ExportedNetwork", file: Path) -> None:
        if self.repo is None:
            return
        from huggingface_hub import HfApi

        try:
            api = HfApi()
            api.create_repo(self.repo, private=self.private, exist_ok=True)
            done = api.upload_folder(
                repo_id=self.repo,
                folder_path=file.parent,
                allow_patterns=[file.name, CONFIG, CARD],
                commit_message="Upload by graft export",
            )
        except Exception as error:  # the hub's own, httpx's or requests', depending on its version
            reason = " ".join(str(error).split())[:300] or type(error).__name__
            raise ExportError(
                f"format.hub.repo={self.repo}: the upload failed ({reason}).\nThe folder is complete: {file.parent}."
            ) from error
        log.info("uploaded: %s", getattr(done, "commit_url", done))


def config_of(network: "ExportedNetwork") -> dict[str, Any]:
    """The content of config.json: that of timm where the network is timm's, and under "graft" what Graft reads."""
    restored = network.restored
    described = {
        "num_classes": len(restored.classes),
        "label_names": list(restored.classes),
        "graft": {
            "recipe": restored.recipe.to_dict(),
            "classes": list(restored.classes),
            "preprocessing": restored.preprocessing.to_dict(),
            **decisions_of_network(restored),
        },
    }
    if restored.recipe.family != "timm":
        return {"library_name": "graft", **described}
    preprocessing = restored.preprocessing
    height, width = preprocessing.size
    original: Mapping[str, Any] = getattr(restored.network, "pretrained_cfg", {})
    kept = {key: original[key] for key in ("classifier", "first_conv", "pool_size") if original.get(key)}
    arguments = network.origin.arguments
    return {
        "architecture": restored.recipe.name.partition(".")[0],
        **described,
        "model_args": {key: value for key, value in arguments.items() if key != "num_classes"},
        "pretrained_cfg": {
            **kept,
            "num_classes": len(restored.classes),
            "input_size": list(preprocessing.shape),
            "fixed_input_size": bool(original.get("fixed_input_size")),
            "interpolation": preprocessing.interpolation,
            "crop_pct": min(height, width) / preprocessing.resize_size,
            "crop_mode": "squash" if preprocessing.fit == "squash" else "center",
            "mean": list(preprocessing.mean),
            "std": list(preprocessing.std),
        },
    }


def model_card(network: "ExportedNetwork", summary: Mapping[str, Any], license: str | None, repo: str | None) -> str:
    """README.md of the repository: what the network is, how it was trained, and what it achieves.

    Args:
        network: what is exported.
        summary: of its run; empty where that is unknown.
        license: of the weights; None: to be filled in.
        repo: ORG/NAME; None where it is unknown.
    """
    restored, where = network.restored, f"hf://{repo}" if repo else "FOLDER"
    library = "timm" if restored.recipe.family == "timm" else "graft"
    metrics = {name: value for name, value in _mapping(summary.get("metrics")).items() if _is_overall(name, value)}
    data = _mapping(summary.get("data"))
    words = [shareable(str(word)) for word in summary.get("overrides") or ()]
    classes = restored.classes
    parts = [
        _front_matter(restored.recipe.name, library, license, metrics),
        f"# {restored.recipe.name} for {len(classes):,} classes",
        f"{restored.recipe.name} trained by [Graft](https://github.com/graft-vision/graft) to tell "
        f"{', '.join(map(_plain, classes[:20]))}{', …' if len(classes) > 20 else ''} apart.",
        "**License**: " + (license or "TODO: fill in the license of the weights, here and in the first lines."),
        f"## Use\n\n```bash\ngraft predict checkpoint={where} source=photo.jpg\n"
        f"graft train {_model_of(restored.recipe)} model.weights={where} data=folder data.root=photos\n```",
    ]
    if library == "timm":
        parts.append(
            "```python\nimport timm\n\nnetwork = timm.create_model("
            + (f'"hf-hub:{repo}"' if repo else '"local-dir:FOLDER"')
            + ", pretrained=True).eval()\n```"
        )
    preprocessing = restored.preprocessing
    height, width = preprocessing.size
    image_format = "RGB" if preprocessing.image_format.is_rgb else preprocessing.image_format
    parts.append(
        f"Images: {image_format}, {preprocessing.fit} to {height} x {width} pixels (from {preprocessing.resize_size}, "
        f"{preprocessing.interpolation}), mean {list(preprocessing.mean)}, standard deviation "
        f"{list(preprocessing.std)} of values in [0, 1]."
    )
    if counts := _mapping(data.get("counts")):
        rows = [[_plain(name), *(f"{_mapping(each).get(name, 0):,}" for each in counts.values())] for name in classes]
        totals = ["total", *(f"{sum(_mapping(each).values()):,}" for each in counts.values())]
        parts.append("## Data\n\nNumber of images:\n\n" + _table(["class", *counts], [*rows[:50], totals]))
    if metrics:
        parts.append(
            "## Metrics\n\n" + _table(["metric", "value"], [[name, f"{v:.4f}"] for name, v in metrics.items()])
        )
    if words:
        named = _mapping(summary.get("versions")).items()
        versions = ", ".join(f"{name} {value}" for name, value in named if name != "platform")
        parts.append(f"## Training\n\n```bash\ngraft train {shlex.join(words)}\n```\n\nVersions: {_plain(versions)}")
    return "\n\n".join(parts) + "\n"


def _front_matter(name: str, library: str, license: str | None, metrics: Mapping[str, float]) -> str:
    lines = [
        "---",
        f"license: {license}" if license else "license: other  # TODO: fill in",
        f"library_name: {library}",
        "pipeline_tag: image-classification",
        "tags:",
        "- image-classification",
        "- graft",
        *(["metrics:", "- accuracy"] if "test/acc" in metrics else []),
        "---",
    ]
    return "\n".join(lines)


def _is_overall(name: str, value: object) -> bool:
    """Whether a metric is one of validation or test of all classes together."""
    split, _, rest = str(name).partition("/")
    return split in ("val", "test") and "/" not in rest and isinstance(value, int | float)


def shareable(word: str) -> str:
    """An override without folders of a machine and addresses: data.root=/home/me/photos → data.root=photos."""
    key, equals, value = word.partition("=")
    private = value.startswith(("/", "~")) or ("://" in value and not value.startswith("hf://"))
    return f"{key}={PurePosixPath(value).name}" if equals and private else word


def _model_of(recipe: Recipe) -> str:
    """The overrides that choose a network."""
    if recipe.target is not None:
        return f"model._target_={recipe.target}"
    return f"model={recipe.family} model.name={recipe.name}" if recipe.family else f"model={recipe.name}"


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _plain(text: str) -> str:
    """Text without the characters that Markdown reads."""
    return re.sub(r"([\\`*_{}\[\]<>#|!])", r"\\\1", " ".join(text.split()))


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows])
