"""The table of GPU measurements is generated from the recorded results."""

import json
from pathlib import Path

from benchmarks.gpu import MARKS, read_results, write_table


def test_the_table_has_the_last_value_of_each_figure_and_leaves_the_rest_of_the_page(tmp_path: Path) -> None:
    line = {"measurement": "step", "what": "Graft", "unit": "images/s", "goal": 3, "at_most": False, "note": ""}
    first, second = (tmp_path / f"{number}.jsonl" for number in (1, 2))
    first.write_text(json.dumps(line | {"value": 2.5, "reached": False}) + "\n")
    second.write_text(json.dumps(line | {"value": 3.5, "reached": True}) + "\n")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
    write_table([first, second], page)
    assert [result["value"] for result in read_results([first, second])] == [3.5]
    assert page.read_text().startswith("before\n")
    assert page.read_text().endswith(f"{MARKS[1]}\nafter\n")
    assert "| step: Graft | 3.5 images/s | ≥ 3 | reached |" in page.read_text()
    assert "old" not in page.read_text()
