"""Every command of README.md and docs/ runs."""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import ROOT, command, succeeded
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf
from one_training_step import ONE_STEP, composed_small, make_small_sets, run_one_step
from PIL import Image

from graft.cli import TASKS
from graft.config import conf_dir
from graft.config.overrides import quote_literals
from graft.data.images import ImageSet
from graft.data.loading import load_published
from graft.data.shards.packing import Options, Packing, pack
from graft.sweep import hooks as sweep

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
GENERATED = {"results.md", "defaults.md"}

HERE = {"~/photos": "photos", "data.shots=10": "data.shots=2", "paths.data=/datasets": "paths.data=data",
        "$SLURM_ARRAY_TASK_ID": "0"}  # fmt: skip
"""Names on a page and what replaces them in the test."""

ONE_TASK = {
    "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0", "SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_NUM_NODES": "1", "SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0",
}  # fmt: skip
"""Environment that srun sets for the only task of a step."""


def examples() -> list[tuple[str, str, str]]:
    """(page, task, words) of every `graft TASK …` and `python train.py …`, by srun or not, in a block of shell
    commands."""
    found = []
    for page in PAGES:
        if page.name in GENERATED:
            continue
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["srun"]:
                    words = words[next(i for i, word in enumerate(words) if word in ("graft", "python")) :]
                if words[:2] == ["python", "train.py"]:
                    found.append((page.name, "train", shlex.join(words[2:])))
                elif words and words[0].endswith("graft") and words[1] in TASKS:
                    found.append((page.name, words[1], shlex.join(words[2:])))
    return list(dict.fromkeys(found))


def local_overrides(words: str) -> list[str]:
    """The overrides of an example, with what there is here."""
    for theirs, here in HERE.items():
        words = words.replace(theirs, here)
    return [word for word in shlex.split(words) if word not in ("-m", "--multirun")]


def trained() -> list[tuple[str, str]]:
    """(page, words) of every example of training, once where they differ only in what the test overrides, in the
    seed, the learning rate, or in the overrides of Hydra."""
    found: dict[frozenset[str], tuple[str, str]] = {}
    same = ("seed=", "optimizer.lr=", "paths.outputs=")
    overridden = {word.partition("=")[0] for word in ONE_STEP}
    for page, task, words in examples():
        if task == "train":
            hydras = ("hydra.", "hydra/", "resume=", "sweep_name=")
            own = [word for word in local_overrides(words) if not word.startswith(hydras)]
            what = {word for word in own if not word.startswith(same) and word.partition("=")[0] not in overridden}
            found.setdefault(frozenset(what), (page, shlex.join(own)))
    return list(found.values())


TO_HYDRA = [words for _, task, words in examples() if task == "train" and "hydra" in words]
USED = {
    (task, *shlex.split(words)): (page, task, words) for page, task, words in examples() if task != "train"
}.values()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with every set in data/, and photos/ of one's own."""
    root = tmp_path_factory.mktemp("reader")
    make_small_sets(root / "data")
    for name in ("cat", "dog"):
        folder = root / "photos" / name
        for part in ("train", "val"):
            shutil.copytree(
                root / "data/hymenoptera_data" / part / ("ants" if name == "cat" else "bees"), folder / part
            )
        for copy in range(3):
            shutil.copytree(root / "data/hymenoptera_data/train/ants", folder / f"copy{copy}")
    write_tables(root, root / "photos")
    published, _ = load_published("folder", root=root / "photos", seed=0)
    pack(Packing.of(published, Options(), (), {}), root / "shards")
    write_images(root / "insects", published.train)
    (root / "corrections.csv").write_text(f"path,given,action,label\n{published.train.names[0]},,exclude,\n")
    write_bands(root, published.train)
    return root


def write_bands(root: Path, images: ImageSet) -> None:
    """xrays/, photographs in grey, and satellite/, the same in five bands."""
    for name, path in zip(images.names, images.files, strict=True):
        for folder, ending in (("xrays", ".png"), ("satellite", ".npy")):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
            file = (root / folder / name).with_suffix(ending)
            grey = Image.open(path).convert("L")
            grey.save(file) if ending == ".png" else np.save(file, np.stack([np.asarray(grey, np.uint16)] * 5))


def write_tables(folder: Path, photos: Path) -> None:
    """Tables of photos/CLASS/CAMERA/FILE: labels.csv and labels.parquet, list.txt without a header, photos/test.csv;
    with several labels per image tags.csv and one_hot.csv."""
    from pyarrow import table
    from pyarrow.parquet import write_table

    folder.mkdir(exist_ok=True)
    names = ("file", "species", "camera")
    files = [file.relative_to(photos) for file in sorted(photos.rglob("*.*g"))]
    rows = [(file.as_posix(), file.parts[0], file.parts[1]) for file in files]
    (folder / "labels.csv").write_text("\n".join(map(",".join, [names, *rows])))
    (folder / "tags.csv").write_text("\n".join(["file,tags", *(f"{file},{label};{tag}" for file, label, tag in rows)]))
    flags = (f"{file},{int(label == 'cat')},{int(label == 'dog')}" for file, label, _ in rows)
    (folder / "one_hot.csv").write_text("\n".join(["file,cat,dog", *flags]))
    (folder / "list.txt").write_text("\n".join(f"{file} {label}" for file, label, _ in rows))
    (photos / "test.csv").write_text("\n".join(["id", *(str(file.with_suffix("")) for file in files)]))
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    write_table(table(columns), folder / "labels.parquet")


def write_images(folder: Path, images: ImageSet) -> None:
    """train.parquet with the files and the class index of images, as data sets of the Hugging Face Hub have them."""
    from pyarrow import table
    from pyarrow.parquet import write_table

    folder.mkdir()
    files = [{"bytes": path.read_bytes(), "path": name} for name, path in zip(images.names, images.files, strict=True)]
    write_table(table({"image": files, "label": images.labels.tolist()}), folder / "train.parquet")


@pytest.fixture(scope="module")
def copied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with every configuration that a page gives to copy, each under the name in its first line."""
    root = tmp_path_factory.mktemp("copied")
    for page in PAGES:
        for name, text in re.findall(r"```yaml\n# conf/(\S+\.yaml)\n(.*?)```", page.read_text(), re.DOTALL):
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text)
    return root


def first_of_each_sweep(words: list[str]) -> list[str]:
    """The words of a sweep's first job."""
    kept = []
    for word in words:
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException:  # a text that is quoted later
            kept.append(word)
            continue
        if override.is_sweep_override():
            kept.append(f"{override.key_or_group}={next(iter(override.sweep_string_iterator()))}")
        else:
            kept.append(str(override.input_line))
    return kept


PACKAGES = ("mlflow", "wandb", "comet_ml", "schedulefree")
"""Packages that the tests' environment may lack, and that examples with these words need."""


@pytest.mark.parametrize(("page", "words"), trained())
def test_an_example_of_training_trains(
    page: str, words: str, folders: Path, digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folders)
    words = words.replace("RUN_FOLDER", str(digits_run))
    for package in PACKAGES:
        if package.partition("_")[0] in words.replace("schedule_free", "schedulefree"):
            pytest.importorskip(package)
    if "trainer=ddp_slurm" in words:
        for name, value in ONE_TASK.items():
            monkeypatch.setenv(name, value)
    overrides = [word for word in shlex.split(words) if "interval(" not in word and "choice(" not in word]
    overrides = quote_literals(first_of_each_sweep(overrides), "train")
    result = run_one_step(composed_small(*overrides, *ONE_STEP), tmp_path / "run", monkeypatch)
    assert {"test/acc", "test/map"} & result["metrics"].keys()


@pytest.mark.parametrize("words", TO_HYDRA)
def test_hydra_composes_the_hydra_overrides_of_an_example(words: str, copied: Path) -> None:
    sweep.register()
    overrides = local_overrides(words)
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir())):
        hydra = GlobalHydra.instance().hydra
        assert hydra is not None
        config = hydra.compose_config("train", [f"hydra.searchpath=[file://{copied}]", *overrides], RunMode.MULTIRUN)
    hydra_overrides = [word.partition("=")[::2] for word in overrides if word.startswith("hydra.")]
    assert all(OmegaConf.select(config, key) is not None for key, _ in hydra_overrides)
    for _, launcher in (word.partition("=")[::2] for word in overrides if word.startswith("hydra/launcher=")):
        plugin = {"joblib": "joblib", "our_slurm": "submitit", "submitit_slurm": "submitit"}.get(launcher, "ray")
        assert plugin in config.hydra.launcher._target_


@pytest.mark.parametrize(("page", "task", "words"), USED)
def test_an_example_of_the_other_commands_runs(
    page: str, task: str, words: str, folders: Path, digits_run: Path, tmp_path: Path, shared_weights: Path
) -> None:
    overrides = [
        word.replace("RUN_FOLDER", str(digits_run)).replace("~/photos", "photos").replace("=more", "=photos")
        for word in shlex.split(words)
    ]
    overrides = [
        str(folders / word) if word == "photos" else word.replace("=photos", f"={folders}/photos") for word in overrides
    ]
    for table in ("labels.csv", "tags.csv", "satellite"):
        overrides = [word.replace(f"={table}", f"={folders}/{table}") for word in overrides]
    if "other/checkpoints" in words:
        shutil.copytree(digits_run / "checkpoints", tmp_path / "other" / "checkpoints")
    if "checkpoint" in words and "data.root" in words:
        digits = folders / "own_digits"
        if not digits.is_dir():
            save_digits(digits)
            write_tables(digits.parent / "tables", digits)
        overrides = [word.replace(f"{folders}/photos", str(digits)) for word in overrides]
        overrides = [word.replace(f"{folders}/labels.csv", f"{folders}/tables/labels.csv") for word in overrides]
    if task == "predict" and "model=" in words:
        overrides += ["model=squeezenet1_0", f"model.weights={shared_weights}/squeezenet1_0-imagenet.safetensors"]
    if task == "improve" and not any(word.startswith(("run=", "models=")) for word in overrides):
        overrides += ["model=squeezenet1_1", f"model.weights={shared_weights}/squeezenet1_1-imagenet.safetensors"]
    if task == "compare":
        shutil.copytree(digits_run, tmp_path / "outputs" / "sweep" / "0")
    done = command(tmp_path / "run", "-m", "graft.cli", task, *overrides)
    if task == "inspect":  # the reader's photographs hold copies, which is what inspect is for
        assert done.code == ("labels.csv" not in words), done.err  # where groups keep the copies on one side
        assert "same" in done.out.lower() or "duplicate" in done.out.lower()
    else:
        succeeded(done)


def save_digits(folder: Path) -> None:
    """Digits as class folders."""
    from graft.data.loading import load_splits

    images = load_splits("digits", root=None, seed=0).test
    for index in range(200):
        file = folder / str(images.labels[index]) / f"{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        images.load(index).save(file)


def test_every_page_has_examples() -> None:
    pages: Any = {page for page, _, _ in examples()}
    assert pages >= {page.name for page in PAGES} - GENERATED - {"architecture.md"}


def test_every_test_named_by_a_guarantee_exists() -> None:
    named = re.findall(r"`((?:\w+/)*test_\w+\.py)(?:::(test_\w+))?`", (ROOT / "docs" / "reliability.md").read_text())
    assert len(named) > 30
    for file, name in named:
        assert f"def {name or 'test_'}" in (ROOT / "tests" / file).read_text(), f"{file}::{name}"
