"""Private APIs that Graft uses still do what it needs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.models.inception import InceptionOutputs
from torchvision.transforms import v2

from graft.system import compat

ENDING = """
import atexit, sys, threading, time
from graft.system.compat import end_process
atexit.register(print, "exit handler")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
sys.stdout.write("unflushed ")
end_process({code})
"""


@pytest.mark.parametrize(("given", "code"), [(None, 0), (3, 3), ("a message", 1)])
def test_a_process_ends_after_its_threads_and_exit_handlers(given: object, code: int) -> None:
    words = [sys.executable, "-c", ENDING.format(code=repr(given))]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (code, "unflushed thread\nexit handler\n")
    assert done.stderr.strip() == (given if isinstance(given, str) else "")


def test_bf16_support_is_detected() -> None:
    assert isinstance(compat.cpu_has_bf16_units(), bool)


def test_lerp_updates_tensors_in_place() -> None:
    tensors, ends = [torch.zeros(3), torch.ones(2)], [torch.ones(3), torch.ones(2)]
    compat.lerp_all_(tensors, ends, 0.25)
    assert tensors[0].tolist() == [0.25] * 3
    assert tensors[1].tolist() == [1.0] * 2  # equal to the bit
    compat.copy_all_(tensors, [torch.full((3,), 5.0), torch.zeros(2)])
    assert tensors[0].tolist() == [5.0] * 3


def test_nested_outputs_are_flattened() -> None:
    assert compat.tree_leaves({"a": [1, (2, None)], "b": InceptionOutputs(3, 4)}) == [1, 2, None, 3, 4]  # type: ignore[arg-type]


@pytest.mark.parametrize("policy", [v2.TrivialAugmentWide, v2.RandAugment, v2.AutoAugment])
def test_the_augmentation_space_of_torchvision_is_read(policy: type) -> None:
    magnitudes, signed = compat.augmentation_space(policy())["Rotate"]
    values = magnitudes(10, 32, 32)
    assert values is not None
    assert values.shape == (10,)
    assert signed is True


def test_the_policies_of_auto_augment_are_read() -> None:
    for pair in compat.auto_augment_pairs(v2.AutoAugment()):
        for operation, probability, magnitude in pair:
            assert operation in compat.augmentation_space(v2.AutoAugment())
            assert 0 <= probability <= 1
            assert magnitude is None or 0 <= magnitude < 10


def test_a_summary_is_written_also_after_the_writer_was_closed(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.compat.proto.summary_pb2 import Summary
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(tmp_path)
    for step in range(2):
        compat.add_summary(writer, Summary(value=[Summary.Value(tag="x", simple_value=step)]), step)
        writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    # files of one second are read by their names, in which the tenth of a process comes before the ninth
    assert {(event.step, event.value) for event in events.Scalars("x")} == {(0, 0), (1, 1)}


def test_a_running_trial_is_opened_by_its_number_and_reports(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    url = f"sqlite:///{tmp_path}/study.db"
    optuna.create_study(study_name="other", storage=url).ask()  # numbers of trials and of the storage differ
    study = optuna.create_study(study_name="it", storage=url)
    study.ask()
    compat.open_trial(optuna.load_study(study_name="it", storage=url), 0).report(0.5, 3)
    assert study.get_trials()[0].intermediate_values == {3: 0.5}
