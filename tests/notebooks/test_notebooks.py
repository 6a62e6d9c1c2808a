"""Every notebook runs from top to bottom offline and ends with the right results."""

import json
import re
import shlex
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

import graft

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"

ENDS = {
    "1_masks_vgg11": "assert accuracies['frozen'] > 0.85 > 0.5, accuracies",
    "2_flowers_vgg16": "assert seen.accuracy == run.metrics['test/acc'] > 0.8; assert len(predictions) == 3",
    "3_six_networks": "assert runs['feature_extract'].metrics['test/acc'] > 0.85; assert best != 'scratch'",
    "4_vgg_from_a_table": "assert min(accuracies.values()) > 0.8, accuracies",
    "5_predict_transfer_finetune": (
        "assert tuned_run.metrics['test/acc'] > 0.85 > before; assert Path('exported/vgg_mini.safetensors').is_file()\n"
        "assert graft.predict('photo.png', 'model=vgg_mini')[0].classes[0] == 'cat'"
    ),
    "6_reading_a_sweep": (
        "assert [len(row.seeds) for row in found] == [3, 3, 3] and found[0].mean('test/acc') > 0.85\n"
        "assert page.is_file()"
    ),
    "7_build_it_yourself": (
        "assert after > 0.8 > before, (before, after); assert len(margins.means) == 8\n"
        "assert module.results['test/acc'] > 0.8; assert by_image.probabilities == by_array.probabilities"
    ),
    "8_better_labels": (
        "assert found > 0.7 * len(mislabelled), (found, len(mislabelled))\n"
        "assert accuracies['corrected'] > accuracies['labels as given'] > 0.8, accuracies\n"
        "assert Path('proposals/improve.html').is_file()"
    ),
}
"""Run after the last cell, in the notebook's own kernel."""

SLOW = ENDS.keys() - {"2_flowers_vgg16"}


def test_the_list_of_notebooks_is_complete() -> None:
    assert {file.stem for file in FOLDER.glob("*.ipynb")} == ENDS.keys()


@pytest.mark.parametrize("name", ENDS)
def test_notebooks_are_committed_without_outputs(name: str) -> None:
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["outputs"] for cell in code] == [[]] * len(code)
    assert {cell["execution_count"] for cell in code} == {None}
    assert all(not cell["metadata"] for cell in notebook["cells"])
    assert notebook["metadata"]["language_info"] == {"name": "python"}, "no version of whoever ran it last"


@pytest.mark.parametrize("name", ENDS)
def test_the_commands_in_a_notebook_exist(name: str) -> None:
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    lines = re.findall(r"^graft (\w+) (.+)$", text, re.MULTILINE)
    assert lines or name == "6_reading_a_sweep"
    for task, words in lines:
        for one in each_job(shlex.split(words)):
            graft.compose(*one, task=task)


def each_job(words: list[str]) -> list[list[str]]:
    """The words themselves; of a sweep, those of a job for each of the experiments."""
    if "-m" not in words:
        return [words]
    (experiments,) = (word.partition("=")[2] for word in words if word.startswith("experiment="))
    return [[f"experiment={experiment}"] for experiment in experiments.split(",")]


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in ENDS])
def test_a_notebook_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAFT_WEIGHTS", raising=False)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    for proxy in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):  # whoever asks for an address gets none
        monkeypatch.setenv(proxy, "http://127.0.0.1:9")
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(ENDS[name]))
    work = tmp_path / "work"
    work.mkdir()
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(work)}}).execute()
    assert (work / "outputs").is_dir(), "what it trains is written where it runs"
