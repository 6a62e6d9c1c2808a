"""Text, HPARAMS and projector files for TensorBoard."""

import html
import re
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.hparams import metadata
from torch.utils.tensorboard import SummaryWriter

from graft.learning.predictions import Predictions
from graft.review import board

AWKWARD = [
    "<script>alert(1)</script>", "a|b", "*stars* and _lines_", "[x](http://example.org)", "`code`", "![](http://a.b/c)",
    "# heading", "1. one", "- dash", "two\nlines", "~~gone~~", "&amp;", "back\\slash", "개미",
]  # fmt: skip


@pytest.mark.parametrize("text", AWKWARD)
def test_a_table_cell_shows_its_text_verbatim(text: str) -> None:
    shown = markdown_to_safe_html(board.table(["name"], [[text]]))
    (cell,) = re.findall(r"<td>(.*?)</td>", shown, re.DOTALL)
    assert "<" not in cell
    assert html.unescape(cell) == " ".join(text.split())


def test_verbatim_text_cannot_close_its_block() -> None:
    text = "a: ```\n</code></pre>\n<img src=x>\n\nb: 'x'"
    shown = markdown_to_safe_html(board.verbatim(text))
    (block,) = re.findall(r"<pre><code>(.*?)</code></pre>", shown, re.DOTALL)
    assert html.unescape(block).strip() == text


def hparams(folder: Path, tag: str) -> bytes:
    events = EventAccumulator(str(folder))
    events.Reload()
    return events.SummaryMetadata(tag).plugin_data.content


@pytest.mark.parametrize("success", [True, False])
def test_a_runs_row_in_hparams_has_typed_choices_final_metrics_and_its_status(success: bool, tmp_path: Path) -> None:
    choices = {"model": "vgg16", "optimizer.lr": 0.1, "seed": 3, "compile": False, "ema": None, "betas": [0.9, 0.99]}
    with SummaryWriter(tmp_path) as writer:
        board.open_session(writer, choices, first=("compile",))
        board.close_session(writer, {"test/acc": 0.75, "val/acc": 0.5, "train/acc": 1.0}, 12, success=success)
    start = metadata.parse_session_start_info_plugin_data(hparams(tmp_path, metadata.SESSION_START_INFO_TAG)).hparams
    assert start["model"].string_value == "vgg16"
    assert start["optimizer.lr"].number_value == 0.1
    assert start["compile"].WhichOneof("kind") == "bool_value"
    assert start["betas"].string_value == "[0.9, 0.99]"
    assert "ema" not in start
    experiment = metadata.parse_experiment_plugin_data(hparams(tmp_path, metadata.EXPERIMENT_TAG))
    assert [info.name for info in experiment.hparam_infos if info.differs] == ["model", "optimizer.lr", "compile"]
    assert [info.name.tag for info in experiment.metric_infos][:2] == ["whole_run/val/acc", "whole_run/test/acc"]
    end = metadata.parse_session_end_info_plugin_data(hparams(tmp_path, metadata.SESSION_END_INFO_TAG))
    assert end.status == (1 if success else 2)
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert {name: events.Scalars(name)[0].value for name in events.Tags()["scalars"]} == {
        "whole_run/test/acc": 0.75,
        "whole_run/val/acc": 0.5,
    }


@pytest.mark.parametrize("shape", [(40, 7), (9, 300)])
def test_principal_components_keep_distances(shape: tuple[int, int]) -> None:
    features = np.random.default_rng(0).normal(size=shape)
    reduced = board.principal_components(features, 64)
    assert reduced.shape == (shape[0], min(shape))
    distances = [np.linalg.norm(rows[:, None] - rows[None], axis=-1) for rows in (features, reduced)]
    np.testing.assert_allclose(*distances, atol=1e-6)
    assert np.all(np.diff(reduced.var(axis=0)) <= 1e-9), "the widest direction first"


def test_an_embedding_replaces_its_own_files_and_no_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labels, score = np.array([0, 1]), np.array([0.9, 0.8])
    predictions = Predictions(
        *(1, 0, labels, labels, labels, score, score, score[:, None], np.eye(2, dtype=np.float32), labels)
    )
    thumbnails = np.zeros((2, 4, 4, 3), np.uint8)
    folder = tmp_path / board.PROJECTOR / board.EMBEDDING
    for part in ("first", "resumed", "resumed again"):
        writer = SummaryWriter(str(tmp_path))
        board.put_embedding(writer, predictions, thumbnails, ["a", "b"])
        writer.close()
        if part != "resumed again":
            assert "warning" not in capsys.readouterr().out
        if part == "resumed":
            (folder / "notes.txt").write_text("mine")
    assert {file.name for file in folder.iterdir()} == {"metadata.tsv", "notes.txt", "sprite.png", "tensors.tsv"}
