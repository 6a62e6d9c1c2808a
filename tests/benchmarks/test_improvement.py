"""The benchmark of `graft improve` changes what it says, and its tables are the means of the records."""

import numpy as np

from benchmarks.improvement import changed_labels, found_share, recorded, table


def test_a_seeded_share_of_the_labels_becomes_another_class() -> None:
    labels = np.arange(100) % 5
    given, changed = changed_labels(labels, 5, 0.1, seed=3)
    assert len(set(changed.tolist())) == 10
    assert np.flatnonzero(given != labels).tolist() == sorted(changed.tolist())
    assert given.max() < 5
    assert np.array_equal(changed_labels(labels, 5, 0.1, seed=3)[0], given)
    assert found_share(np.array([*changed[:4], 0, 1, 2, 3, 5, 6, *changed[4:7]]), changed, 1) >= 0.4
    assert found_share(changed, changed, 2) == 1


def test_the_tables_have_the_means_of_the_recorded_runs() -> None:
    def label(seed: int, found: float) -> dict[str, object]:
        return {
            "kind": "labels", "set": "flowers", "networks": ["a", "b"], "fraction": 0.05, "seed": seed,
            "found": found, "found_twice": 0.9, "before": 0.8, "after": 0.85, "true": 0.86,
        }  # fmt: skip

    ahead = {"images": 1500, "value": 0.9, "low": 0.88, "high": 0.92, "true": 0.91}
    forecasts = [
        {"kind": "forecast", "set": "flowers", "start": 800, "forecasts": [ahead]},
        {"kind": "forecast", "set": "flowers", "start": 800, "forecasts": [ahead | {"value": 0.94, "low": 0.92}]},
    ]
    text = table([label(0, 0.8), label(1, 0.9), *forecasts])
    assert "| flowers | a, b | 5% | 0.85 | 0.90 | 0.800 | 0.850 | 0.860 |" in text
    assert "| flowers | 800 | 1,500 | 0.910 | 0.920 | 2.0 | 1 of 2 |" in text


def test_the_page_has_the_tables_of_the_records() -> None:
    from commands import ROOT

    page = (ROOT / "docs" / "improve.md").read_text()
    for line in table(recorded()).splitlines():
        assert line in page
