"""The folder, GPUs and CPU cores of each job of a sweep."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from graft.sweep.gpu_slots import Slot, claimed_slot, share
from graft.sweep.job import swept_keys
from graft.sweep.job_folders import job_folder


def test_a_configuration_keeps_its_folder_and_no_folder_is_used_twice(tmp_path: Path) -> None:
    assert job_folder(tmp_path, 0, "a") == "0"
    assert job_folder(tmp_path, 1, "b") == "1"
    assert job_folder(tmp_path, 5, "a") == "0", "the same configuration, wherever it stands in the grid now"
    assert job_folder(tmp_path, 1, "c") == "2", "1 belongs to another"
    assert job_folder(tmp_path, 7, "d") == "7"
    assert job_folder(tmp_path, 0, "e") == "8"


def test_an_existing_folder_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    (tmp_path / "0" / "precious").write_text("mine")
    assert job_folder(tmp_path, 0, "a") == "1"


def test_jobs_that_start_together_get_separate_folders(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda number: job_folder(tmp_path, 0, f"{number % 20}"), range(40)))
    assert sorted(set(names), key=int) == [str(number) for number in range(20)]
    assert names[:20] == names[20:]


def test_slots_are_disjoint_and_of_equal_size() -> None:
    assert [share("abcdefgh", number, 4) for number in range(4)] == ["ab", "cd", "ef", "gh"]
    assert [share("abc", number, 2) for number in range(2)] == ["a", "b"]
    assert [share("ab", number, 3) for number in range(3)] == ["a", "b", "a"], "more jobs than things share them"
    assert not share("", 1, 3)


def test_each_job_has_exclusive_gpus_and_cores_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-7f,5,6")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {2, 3, 8, 9}, raising=False)
    monkeypatch.setattr("graft.sweep.gpu_slots.available_cores", lambda: 4)
    with claimed_slot(2, tmp_path) as first:
        with claimed_slot(2, tmp_path) as second:
            assert (first, second) == (Slot(("3", "GPU-7f"), (2, 3)), Slot(("5", "6"), (8, 9)))
        with claimed_slot(2, tmp_path) as third:
            assert third == second
    with claimed_slot(1, tmp_path) as alone:
        assert alone == Slot(None, None)


@pytest.mark.parametrize("kind", ["a file", "a link", "a folder of somebody else"])
def test_files_of_others_in_the_temporary_folder_do_not_block_a_sweep(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setattr("tempfile.tempdir", None)
    for name in (f"graft-slots-{os.getuid()}", f"graft-{os.getuid()}", "graft"):
        if kind == "a file":
            (temporary / name).touch()
        elif kind == "a link":
            (temporary / name).symlink_to(tmp_path / "elsewhere")
        else:
            (temporary / name).mkdir(mode=0)
    with claimed_slot(2, tmp_path / "sweep") as first, claimed_slot(2, tmp_path / "sweep") as second:
        assert first != second or first.cores is None
    assert not (tmp_path / "elsewhere").exists()


def test_the_keys_of_a_sweep_are_those_of_its_command_and_of_its_search_space(tmp_path: Path) -> None:
    words = ["model=vgg16", "optimizer.lr=0.1,0.01", "seed=range(0,3)", "data.root=/photos"]
    OmegaConf.save({"hydra": {"overrides": {"task": words}}}, tmp_path / "multirun.yaml")
    sweeper = OmegaConf.create({"params": {"optimizer.weight_decay": "interval(0,1)"}})
    assert swept_keys(tmp_path, sweeper) == ("optimizer.lr", "seed", "optimizer.weight_decay")
    assert swept_keys(tmp_path / "none", OmegaConf.create({})) == ()
