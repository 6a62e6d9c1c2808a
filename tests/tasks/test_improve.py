"""graft improve finds changed labels, its page saves decisions, and data.corrections applies them in every command."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from commands import Finished, command, succeeded, train
from image_folders import state

import graft
from graft.data.loading import load_splits
from graft.errors import ConfigError

NETWORK = ("model=vgg_mini", "model.weights=bundled")
SHORT = ("strategy=feature_extract", "trainer.max_epochs=1", "augment=none", "logger=none", "review=none")  # fmt: skip
CHANGED = 5
HOSTILE = "<img src=x onerror=window.broken=1>"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """(a folder of digits, of which some are in the wrong class; name -> true class of these). One class name and one
    file name are hostile, two images are copies with different labels, and one is nearly black."""
    root = tmp_path_factory.mktemp("photos") / "digits"
    images = load_splits("digits", root=None, seed=0).train
    names = {0: "zero", 1: HOSTILE, 4: "=four"}
    moved: dict[str, str] = {}
    for label, name in names.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        members = [index for index in range(len(images)) if images.labels[index] == label][:40]
        for number, index in enumerate(members):
            wrong = number < 2
            folder = names[{0: 1, 1: 4, 4: 0}[label]] if wrong else name
            file = root / folder / f"{label}_{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            images.load(index).resize((32, 32)).save(file)
            if wrong:
                moved[f"{folder}/{file.name}"] = name
    (root / "zero" / "0_7.png").rename(root / "zero" / f"{HOSTILE.replace('/', '')}.png")
    black = images.load(0).point(lambda value: value // 40)
    black.resize((32, 32)).save(root / "zero" / "black.png")
    return root, moved


@pytest.fixture(scope="module")
def improved(photos: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """A finished `graft improve` with images to label next."""
    root, _ = photos
    folder = tmp_path_factory.mktemp("improved")
    before = state(root)
    unlabelled = folder / "more"
    images = load_splits("digits", root=None, seed=0).test
    for index in range(30):
        (unlabelled / "a").mkdir(parents=True, exist_ok=True)
        images.load(index).save(unlabelled / "a" / f"{index}.png")
    (unlabelled / "broken.png").write_bytes(b"no image")
    words = (f"data.root={root}", f"unlabelled={unlabelled}", "improve.count=7", f"folder={folder / 'run'}")
    done = command(folder / "run", "-m", "graft.cli", "improve", "data=folder", *NETWORK, *words, "improve.folds=3")
    assert state(root) == before, "nothing is written to data.root"
    return succeeded(done)


def table(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_changed_labels_are_proposed_first_and_the_next_commands_are_printed(
    improved: Finished, photos: tuple[Path, dict[str, str]]
) -> None:
    _, moved = photos
    rows = table(improved.folder / "proposals.csv")
    scores = [float(row["score"]) for row in rows]
    assert scores == sorted(scores, reverse=True)
    labels = [row for row in rows if row["kind"] == "label"]
    examined = {path: name for path, name in moved.items() if any(row["path"].lstrip("'") == path for row in rows)}
    found = [row for row in labels[: 2 * CHANGED] if row["path"].lstrip("'") in moved]
    assert len(found) >= 3
    assert len(examined) >= 4  # the others are test images, at which nobody has looked
    assert all(row["proposed"].lstrip("'") == moved[row["path"].lstrip("'")] for row in found)
    assert "zero/black.png" in {row["path"] for row in rows if row["kind"] == "dark"}
    assert {row["split"] for row in rows} <= {"train", "val"}
    result = json.loads((improved.folder / "improve.json").read_text())
    assert result["proposals"]["label"] == len(labels)
    assert result["learning_curve"][0]["forecasts"][0]["images"] == 2 * sum(result["images"].values())
    assert "data.corrections=corrections.csv" in improved.out
    chosen = table(improved.folder / "label_next.csv")
    assert [row["path"] for row in chosen] == [row["path"] for row in result["label_next"]]
    assert len({row["path"] for row in chosen}) == 7


def test_python_refuses_a_folder_that_holds_other_proposals(improved: Finished) -> None:
    with pytest.raises(ConfigError, match=r"holds improve\.json"):
        graft.improve("data=digits", folder=improved.folder)


@pytest.fixture(scope="module")
def saved(improved: Finished, browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """corrections.csv, after decisions by keys on the page."""
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((improved.folder / "improve.html").as_uri())
    rows = [row for row in table(improved.folder / "proposals.csv") if row["kind"] == "label"]
    assert page.locator("#count").inner_text().startswith("0 of ")
    page.select_option("#kind", "label")
    page.keyboard.press("a")  # the first: accept
    page.keyboard.press("r")  # the second: reject
    page.keyboard.press("a")
    page.keyboard.press("u")  # the third: accepted and undone …
    page.keyboard.press("c")
    other = next(name for name in ("zero", HOSTILE, "=four") if name not in _names(rows[2]))
    page.select_option("#change", other)  # … and changed to a third class
    page.keyboard.press("ArrowRight")  # the fourth is skipped
    page.keyboard.press("e")  # the fifth: exclude
    page.reload()  # decisions are kept
    page.select_option("#kind", "label")
    assert page.locator("#count").inner_text() == f"4 of {len(rows)} decided"
    page.locator("#strip button >> visible=true").nth(0).click()
    assert "class becomes" in page.locator("#decision").inner_text()
    with page.expect_download() as download:
        page.keyboard.press("s")
    file = tmp_path_factory.mktemp("saved") / download.value.suggested_filename
    download.value.save_as(file)
    assert page.evaluate("window.broken") is None, "a hostile name has become HTML"
    assert errors == []
    page.close()
    return file


def _names(row: dict[str, str]) -> tuple[str, str]:
    return row["given"].removeprefix("'"), row["proposed"].removeprefix("'")


def test_the_page_saves_what_was_decided_by_keys(saved: Path, improved: Finished) -> None:
    rows = [row for row in table(improved.folder / "proposals.csv") if row["kind"] == "label"]
    decided = {row["path"]: row for row in table(saved)}
    first, second, third, fourth, fifth = rows[:5]
    assert saved.name == "corrections.csv"
    assert list(table(saved)[0]) == ["path", "given", "action", "label", "kind"]
    assert (decided[first["path"]]["action"], decided[first["path"]]["label"]) == ("relabel", first["proposed"])
    assert decided[second["path"]]["action"] == "keep"
    assert decided[third["path"]]["action"] == "relabel"
    assert decided[third["path"]]["label"] not in (third["given"], third["proposed"], "")
    assert fourth["path"] not in decided
    assert (decided[fifth["path"]]["action"], decided[fifth["path"]]["given"]) == ("exclude", fifth["given"])


def test_corrections_are_applied_in_training_compared_evaluated_and_checked_on_resume(
    saved: Path, photos: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    root, _ = photos
    words = ("data=folder", f"data.root={root}", *NETWORK, *SHORT)
    plain = succeeded(train(tmp_path / "runs" / "plain", *words))
    corrected = succeeded(train(tmp_path / "runs" / "corrected", *words, f"data.corrections={saved}"))
    data = corrected.summary["data"]
    counts = data["corrections"]
    assert (sum(counts["relabelled"].values()), sum(counts["excluded"].values()), counts["kept"]) == (2, 1, 1)
    assert data["fingerprint"] != plain.summary["data"]["fingerprint"]
    assert corrected.summary["identity"] != plain.summary["identity"]
    totals = [sum(sum(part.values()) for part in run.summary["data"]["counts"].values()) for run in (plain, corrected)]
    assert totals[0] - totals[1] == 1

    compared = succeeded(command(tmp_path / "runs", "-m", "graft.cli", "compare", f"runs={tmp_path / 'runs'}"))
    assert "2 relabelled, 1 excluded" in compared.out
    assert "data.corrections" in compared.out

    evaluated = command(tmp_path / "e", "-m", "graft.cli", "evaluate", f"checkpoint={corrected.folder}", "split=all")
    assert "are not those of the run" not in succeeded(evaluated).out

    resumed = ("trainer.max_epochs=2", f"resume={corrected.folder}")
    without = train(tmp_path / "without", *words, *resumed)
    assert without.code == 1
    assert "data.corrections" in without.err
    other = tmp_path / "other.csv"
    lines = saved.read_text().splitlines()
    other.write_text("\n".join(line for line in lines if ",exclude," not in line) + "\n")
    changed = train(tmp_path / "changed", *words, *resumed, f"data.corrections={other}")
    assert changed.code == 1
    assert f"data.corrections={other}: not the corrections of the checkpoint" in changed.err
    moved = tmp_path / "moved.csv"
    moved.write_text("\n".join([lines[0], *reversed(lines[1:])]) + "\n")
    succeeded(train(tmp_path / "moved", *words, *resumed, f"data.corrections={moved}"))

    again = succeeded(
        command(tmp_path / "again", "-m", "graft.cli", "improve", f"run={corrected.folder}",
                f"folder={tmp_path / 'again'}", "improve.curve=false", "improve.kinds=[label]"),
    )  # fmt: skip
    assert "from which the run started" in again.out
    rejected = [row["path"] for row in table(saved) if row["action"] == "keep"]
    assert not set(rejected) & {row["path"] for row in table(again.folder / "proposals.csv")}
    text = (again.folder / "improve.html").read_text()
    content = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert {row["action"] for row in content["earlier"]} == {"relabel", "exclude", "keep"}, "the page saves them again"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "run or data: neither is set"),
        (("data=digits", "improve.kinds=[lable]"), "Did you mean label?"),
        (("data=digits", "data.corrections=none.csv"), "data.corrections=none.csv: there is no such file"),
        (("data=digits", "unlabelled=nowhere"), "unlabelled=nowhere: there is no such folder"),
        (("data=digits", "model=vgg_mini", "models=[vgg16]"), "model=vgg_mini and models or weights disagree"),
        (("run=nowhere",), "run=nowhere: no checkpoint at nowhere"),
        (("data=digits", "improve.folds=1"), "improve.folds=1: must be at least 2"),
        (("data=digits", "data.sampler=balanced"), "data.sampler: counts in training only"),
    ],
)
def test_mistakes_are_refused_before_torch_is_imported(words: tuple[str, ...], message: str, tmp_path: Path) -> None:
    code = f"import sys; sys.argv = ['graft', 'improve', {', '.join(map(repr, words))}]\n" + (
        "from graft.cli import main\ntry:\n    main()\nfinally:\n    print('torch' in sys.modules)\n"
    )
    done = command(tmp_path / "run", "-c", code.replace("'improve', ]", "'improve']"))
    assert message in done.err
    assert done.out.strip().endswith("False")
