"""Paths and names on the command line are literal; other overrides keep Hydra's grammar."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

import graft
from graft.config.fields import keys_of
from graft.config.overrides import LITERAL, quote_literals
from graft.config.registration import SCHEMAS
from graft.errors import ConfigError

AWKWARD = ("bée (1).jpg", "it's.jpg", "a\\'b;.jpg", "x[1].jpg", "tr(\\", "a&b=c.jpg", "one,two.jpg", "~x", "[x]", "{x}")
NOT_TEXT = (
    "2024_10",
    "1e5",
    "3.10",
    "true",
    "no",
    "inf",
    "Müller (2024)",
    "a b",
    " a",
    "range(3)",
    "a,b",
    "x\\",
)
LITERALS = [(task, key) for task, schema in SCHEMAS.items() for key, _, data in keys_of(schema) if LITERAL in data]


def value_of(word: str) -> object:
    return OverridesParser.create().parse_override(word).value()


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", AWKWARD)
@pytest.mark.parametrize("key", ["source", "data.options.csv"])
def test_an_existing_file_may_have_any_name_under_any_key(key: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    (word,) = quote_literals([f"{key}={name}"], "predict")
    if name not in ("one,two.jpg", "[x]", "{x}"):  # lists and mappings stay what they are
        assert value_of(word) == name


@pytest.mark.parametrize("name", [*AWKWARD[:8], *NOT_TEXT])
def test_a_folder_to_be_made_may_have_any_name(name: str) -> None:
    for task, key in LITERALS:
        for plus in ("", "+", "++"):
            (word,) = quote_literals([f"{plus}{key}={name}"], task)
            assert word.startswith(f"{plus}{key}=")
            assert value_of(word) == name


def test_the_value_arrives_as_it_was_written() -> None:
    config = graft.compose("data.root=2024_10", "sweep_name=2024_10_01", "paths.outputs=out (é)", "resume=1e5").config
    assert (config.data.root, config.sweep_name, config.resume) == ("2024_10", "2024_10_01", "1e5")
    assert config.paths.cache == "out (é)/cache"


def test_a_tilde_after_a_key_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = quote_literals(["data.root=~/photos", "source=~/photos", "-m"], "train")
    assert [value_of(word) for word in words[:2]] == [f"{tmp_path}/photos"] * 2


@pytest.mark.parametrize(
    "word",
    ["tta=true", "seed=0,1", "source=[a,b]", "-m", "source=nowhere (1).jpg", "lr=interval(0,1)", "'a=(b)'", "x=",
     "data.root=null", "data.root='a, b'", 'data.root="1e5"', "~data.root", "data.root=${paths.data}/x",
     "data.root=/photos/flowers", "model=vgg16,vgg11", "trainer.precision=32", "--config-dir=x (1)"],
)  # fmt: skip
def test_other_overrides_are_left_to_hydra(word: str) -> None:
    assert quote_literals([word], "train") == [word]


def test_an_interpolation_in_a_path_is_resolved() -> None:
    config = graft.compose("paths.data=/a b", "data.root=${paths.data}/x", "paths.cache=${paths.data} (cache)").config
    assert (config.data.root, config.paths.cache) == ("/a b/x", "/a b (cache)")


@pytest.mark.parametrize(
    ("value", "jobs"),
    {
        "a,b": ["a", "b"],
        "2024_10,é (1)": ["2024_10", "é (1)"],
        "choice(a,b)": ["a", "b"],
        "'a,b',c": ["a,b", "c"],
        "1e5": ["1e5"],
    }.items(),
)
def test_a_sweep_over_paths_has_a_job_for_each(value: str, jobs: list[str]) -> None:
    word = quote_literals(["-m", f"data.root={value}"], "train")[1]
    override = OverridesParser.create().parse_override(word)
    found = list(override.sweep_string_iterator()) if override.is_sweep_override() else [word.partition("=")[2]]
    assert [value_of(f"x={choice}") for choice in found] == jobs


def test_null_for_a_required_group_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^model=null: train needs an option of this group\.\nThere are: alexnet"):
        graft.compose("model=null")
    for task in ("train", "inspect"):
        for group in ("data", "paths"):
            with pytest.raises(ConfigError, match=f"^{group}=null"):
                graft.compose(f"{group}=null", task=task)


def test_null_for_an_optional_group_is_allowed() -> None:
    assert graft.compose("experiment=null", "sweep=null").config == graft.compose().config
    assert graft.compose("model=null", task="predict").config.model.name is None


@pytest.mark.parametrize("option", ["16", "true", "1e5"])
def test_an_option_that_looks_like_a_number_is_only_unknown(option: str) -> None:
    with pytest.raises(ConfigError, match=f"model={option}: there is no such model"):
        graft.compose(f"model={option}")


def test_inspect_takes_a_data_set_a_run_or_a_file(tmp_path: Path) -> None:
    photos, run, file = tmp_path / "photos", tmp_path / "run", tmp_path / "weights.pth"
    photos.mkdir()
    (run / "checkpoints").mkdir(parents=True)
    file.touch()
    for path, key, value in ((photos, "data.root", photos), (run, "checkpoint", run), (file, "checkpoint", file)):
        config = graft.compose(str(path), task="inspect").config
        assert OmegaConf.select(config, key) == str(value)
        assert ("sources.folder" in config.data._target_) == (path == photos)


def test_a_folder_in_place_of_a_data_set_is_answered_with_the_keys_for_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^data={tmp_path}: .* Did you mean data=folder data.root={tmp_path}\?"):
        graft.compose(f"data={tmp_path}")
