"""The comparison page is complete, escaped and bounded, and works in a real browser."""

import base64
import hashlib
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from graft.learning.predictions import LabelPredictions, Predictions
from graft.report import page as module
from graft.report.comparison import Row, rows
from graft.report.page import as_page, learning_curves
from graft.report.summary import find_summaries
from graft.review.record import record_of, write_record
from graft.system.terminal import PlainConsole
from graft.tasks.compare import show

SCRIPT = "</script><script>window.broken=1</script>"
CLASSES = ("ants", SCRIPT, "개미", "<!-- a")


def a_run(folder: Path, *, acc: float, seed: int = 0, wrong: tuple[int, ...] = (), **choices: object) -> Path:
    """A run's folder as `graft train` leaves it: summary, curves and record of 20 images in 4 classes."""
    folder.mkdir(parents=True)
    metrics = {"test/acc": acc, "val/acc": acc, "test/loss": 1 - acc}
    config = {"model": "vgg16", "strategy": "finetune", **choices}
    summary = {"status": "finished", "seed": seed, "seconds": 2.0, "metrics": metrics, "config": config}
    (folder / "summary.json").write_text(json.dumps(summary))
    lines = ["step,epoch,val/loss,val/acc,train/loss,train/acc,test/acc", "0,0,2.0,0.1,,,"]
    lines += [f"{5 * epoch + 5},{epoch},{1 / (epoch + 1)},{acc * epoch / 2},1.0,0.5," for epoch in range(2)]
    lines += [f"15,3,0.3,{acc},0.2,0.9,{acc}"]  # the test overwrites the last epoch's number
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    labels = np.arange(20) % 4
    predicted = np.where(np.isin(np.arange(20), wrong), (labels + 1) % 4, labels)
    sure = np.full(20, 0.75)
    predictions = Predictions(
        15, 2, np.arange(20), labels, predicted, sure, sure, np.zeros((20, 0)), np.zeros((0, 1)), np.zeros(0, int)
    )
    images = [(number, np.full((64, 64, 3), 12 * number, np.uint8)) for number in range(20)]
    names = [f"{SCRIPT}/{number}.jpg" for number in range(20)]
    write_record(folder, record_of(predictions, "test", CLASSES, names, images))
    return folder


def labelled_run(folder: Path, *, acc: float, scores: list[list[float]]) -> None:
    """As `a_run`, with any number of labels per image; of two images the first has both labels, the second none."""
    a_run(folder, acc=acc, strategy=folder.name)
    none, labels = np.zeros(0, int), np.array([[True, True], [False, False]])
    predictions = LabelPredictions(
        15, 2, np.arange(2), labels, np.array(scores, np.float32), (0.5, 0.25), np.zeros((0, 1)), none
    )
    images = [(number, np.full((64, 64, 3), 90, np.uint8)) for number in range(2)]
    write_record(folder, record_of(predictions, "test", ("ants", "bees"), ["both.jpg", "none.jpg"], images))


def rows_of(folder: Path) -> list[Row]:
    return rows(find_summaries(folder)[0])


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    a_run(tmp_path / "a", acc=0.9, wrong=(3,))
    a_run(tmp_path / "b", acc=0.8, wrong=(3, 4), strategy=SCRIPT)
    a_run(tmp_path / "c", acc=0.7, wrong=(4,), **{"optimizer.lr": 0.1})
    a_run(tmp_path / "c2", acc=0.72, seed=1, wrong=(4,), **{"optimizer.lr": 0.1})
    return tmp_path


def content(text: str) -> Any:
    return json.loads(re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[0])


def test_the_page_loads_nothing_and_escapes_every_name(runs: Path) -> None:
    text = as_page(rows_of(runs), SCRIPT).text
    assert "window.broken=1</script>" not in text
    assert not re.search(r"(?:src|href)\s*=\s*[\"']?https?:", text)
    assert "http" not in text.replace("http-equiv", "").replace("http://www.w3.org/2000/svg", "")
    assert text.count("<script") == 2
    assert "@@" not in text
    [classes] = content(text)["classes"].values()
    assert classes["names"] == list(CLASSES)


def test_the_content_security_policy_blocks_other_scripts(runs: Path) -> None:
    text = as_page(rows_of(runs), "runs").text
    (allowed,) = re.findall(r"script-src '(.*?)'", text)
    scripts = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    assert [f"sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}" for each in scripts] == [
        allowed
    ]


def test_unreadable_files_are_named_on_the_page_and_by_compare(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (runs / "a" / "review.npz").write_bytes(b"PK damaged")
    (runs / "b" / "metrics.csv").unlink()
    os.mkfifo(runs / "b" / "metrics.csv")
    (runs / "bad").mkdir()
    (runs / "bad" / "summary.json").write_text("[]")
    show(runs)
    printed = capsys.readouterr().out
    assert "3 files could not be read" in printed
    for name in ("a/review.npz", "b/metrics.csv", "bad/summary.json"):
        assert f"{runs / name}: " in printed
        assert f"<li>{runs / name}: " in (runs / "compare.html").read_text()


def test_a_table_that_is_too_large_is_not_read(runs: Path) -> None:
    os.truncate(runs / "a" / "metrics.csv", 2**30)
    (ignored,) = as_page(rows_of(runs), "runs").unreadable
    assert "larger than 33,554,432 bytes" in str(ignored)


def test_images_on_which_runs_disagree_are_listed_with_each_prediction(runs: Path) -> None:
    found = content(as_page(rows_of(runs), "runs").text)["disagreements"]
    assert {image["name"].split("/")[-1] for image in found} == {"3.jpg", "4.jpg"}
    three = next(image for image in found if image["name"].endswith("/3.jpg"))
    assert three["true"] == CLASSES[3]
    predicted = {answer["class"]: [number for number, _ in answer["runs"]] for answer in three["predictions"]}
    assert predicted == {CLASSES[0]: [0, 1], CLASSES[3]: [2]}
    assert [answer["correct"] for answer in three["predictions"]] == [False, True]


def test_differences_name_their_rows(runs: Path) -> None:
    text = as_page(rows_of(runs), "runs").text
    values = "<span><code>–</code> in 1, 2</span> <span><code>0.1</code> in 3</span>"
    assert f'<th scope="row">optimizer.lr</th><td>{values}</td>' in text
    assert '<th scope="row">model</th><td>vgg16</td>' in text, "the same everywhere"


def test_keys_that_follow_from_others_are_in_the_list_of_differences_only(tmp_path: Path) -> None:
    a_run(tmp_path / "a", acc=0.9, **{"freeze": "none", "strategy.pretrained": True, "optimizer.lr": 0.1})
    a_run(tmp_path / "b", acc=0.8, strategy="scratch", **{"freeze": "none", "optimizer.lr": 0.1})
    a_run(tmp_path / "c", acc=0.7, **{"freeze": "none", "strategy.pretrained": True, "optimizer.lr": 0.2})
    text = as_page(rows_of(tmp_path), "runs").text
    assert [run["label"] for run in content(text)["runs"]] == [
        "finetune, optimizer.lr=0.1", "scratch, optimizer.lr=0.1", "finetune, optimizer.lr=0.2",
    ]  # fmt: skip
    assert text.count("strategy.pretrained") == 1


def test_curves_are_over_epochs_and_thin_enough(tmp_path: Path) -> None:
    curves, _ = learning_curves(a_run(tmp_path / "a", acc=0.9) / "metrics.csv")
    assert [x for x, _ in curves["val/acc"]] == [0, 1, 2, 3]
    assert curves["train/acc"][-1] == [3, 0.9]
    lines = ["step,epoch,val/loss", *(f"{i},{i // 10},{1 / (i + 1)}" for i in range(5000)), "5001,500,nan", ""]
    (tmp_path / "long.csv").write_text("\n".join(lines))
    points = learning_curves(tmp_path / "long.csv")[0]["val/loss"]
    assert len(points) == module.POINTS
    assert (points[0][1], points[-1][1]) == (1, pytest.approx(1 / 5000))
    (tmp_path / "broken.csv").write_bytes(b"step,val/loss\n1,\xff\xfe\n2,0.5\n")
    assert learning_curves(tmp_path / "broken.csv") == ({"val/loss": [[1, 0.5]]}, 1)


def test_the_page_of_two_thousand_runs_stays_small(tmp_path: Path) -> None:
    record = a_run(tmp_path / "0", acc=0.5, **{"optimizer.lr": 0})
    summary = json.loads((record / "summary.json").read_text())
    for number in range(1, 2000):
        folder = tmp_path / str(number)
        folder.mkdir()
        summary["config"]["optimizer.lr"] = number
        (folder / "summary.json").write_text(json.dumps(summary))
        if number < 100:
            (folder / "review.npz").hardlink_to(record / "review.npz")
            (folder / "metrics.csv").hardlink_to(record / "metrics.csv")
    found = rows_of(tmp_path)
    text = as_page(found, "runs").text
    assert len(content(text)["runs"]) == module.DETAILED
    assert text.count('type="checkbox"') == module.DETAILED
    assert text.count("<tr>") > 2000
    assert "best 50" in text
    assert len(text) < 3_000_000


def test_images_with_several_labels_are_compared_by_their_labels(tmp_path: Path) -> None:
    labelled_run(tmp_path / "a", acc=0.9, scores=[[0.9, 0.3], [0.1, 0.1]])
    labelled_run(tmp_path / "b", acc=0.8, scores=[[0.8, 0.2], [0.3, 0.2]])
    shown = content(as_page(rows_of(tmp_path), "runs").text)
    [image] = shown["disagreements"]
    assert (image["name"], image["true"]) == ("both.jpg", "ants, bees")
    assert image["predictions"] == [
        {"class": "ants, bees", "correct": True, "runs": [[0, 0.3]]},
        {"class": "ants", "correct": False, "runs": [[1, 0.8]]},
    ]
    assert [run["accuracy"] for run in shown["runs"]] == [[1.0, 1.0], [1.0, 0.0]], "recall of each label"
    assert not any("confusion" in run or "mixed" in run for run in shown["runs"])


def test_a_run_without_record_and_curves_is_in_the_table(tmp_path: Path) -> None:
    folder = a_run(tmp_path / "a", acc=0.5)
    (folder / "review.npz").write_bytes(b"broken")
    (folder / "metrics.csv").unlink()
    (shown,) = content(as_page(rows_of(tmp_path), "runs").text)["runs"]
    assert shown["curves"] == {}
    assert "confusion" not in shown


def test_many_classes_are_reduced_to_those_in_which_runs_differ(monkeypatch: pytest.MonkeyPatch, runs: Path) -> None:
    monkeypatch.setattr(module, "LISTED", 1)
    monkeypatch.setattr(module, "CELLED", 2)
    page = content(as_page(rows_of(runs), "runs").text)
    (classes,) = page["classes"].values()
    assert classes["shown"] in ([3], [0])  # images 3 and 4 are of these classes
    assert page["runs"][0]["mixed"] == [[3, 0, 1]]


def test_compare_writes_the_page_and_prints_its_path(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr("graft.tasks.compare.PlainConsole", lambda: PlainConsole(file=out, width=200))
    show(runs, output=runs / "there")
    assert f"page  {runs / 'there' / 'compare.html'}" in out.getvalue()
    assert {file.name for file in (runs / "there").iterdir()} == {"compare.html", "compare.md", "compare.csv"}


# -- in a browser ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["light", "dark"])
def tab(request: pytest.FixtureRequest, runs: Path, browser: Any) -> Any:
    """The page, offline; anything the browser complains of fails the test."""
    show(runs)
    context = browser.new_context(offline=True, color_scheme=request.param, viewport={"width": 1400, "height": 1000})
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.goto((runs / "compare.html").as_uri())
    yield opened
    assert complaints == []
    context.close()


def column(tab: Any, number: int) -> list[str]:
    return tab.locator(f"#runs tbody tr:visible td:nth-child({number})").all_inner_texts()


def test_a_browser_shows_sorts_and_filters_without_a_network(tab: Any) -> None:
    assert tab.evaluate("window.broken") is None
    assert tab.locator("#legend span").count() == 3
    assert tab.locator("#curves path").count() == 4 * 3
    assert tab.locator("#confusion svg").count() == 3
    assert tab.locator("#confusion svg").first.locator("rect").count() == 1 + 4 + 1
    assert tab.locator("#accuracy circle").count() == 3 * 4
    assert tab.locator("#disagreements .card").count() == 2
    assert all(tab.evaluate("[...document.images].map(image => image.naturalWidth)"))
    assert column(tab, 2) == ["1", "2", "3"]
    header = tab.get_by_role("button", name="test/loss")
    header.click()
    assert column(tab, 2) == ["1", "2", "3"], "the least loss first"
    header.click()
    assert column(tab, 2) == ["3", "2", "1"]
    tab.get_by_role("button", name="strategy").click()
    assert column(tab, 3)[0] == SCRIPT
    tab.get_by_role("searchbox").fill("finetune 0.014")
    assert column(tab, 2) == ["3"]
    tab.get_by_role("searchbox").fill("")
    tab.get_by_role("checkbox", name="show run 1", exact=True).uncheck()
    assert tab.locator("#legend span").count() == 2
    assert tab.locator("#confusion svg").count() == 2
    background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
    assert background in ("rgb(255, 255, 255)", "rgb(21, 24, 28)")
