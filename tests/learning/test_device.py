"""What is said of a device that cannot do what is asked for."""

import pytest
import torch

from graft.errors import TrainingError
from graft.learning.device import telling_of_determinism


def test_an_operation_that_cannot_be_repeated_is_named_with_a_way_out() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(TrainingError) as raised, telling_of_determinism():
            torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))
    finally:
        torch.use_deterministic_algorithms(False)
    assert str(raised.value).startswith(
        "trainer.deterministic=true: PyTorch cannot compute put_ the same way each time"
    )
    assert "trainer.deterministic=warn" in str(raised.value)


def test_any_other_error_goes_its_way() -> None:
    with pytest.raises(RuntimeError, match="shape"), telling_of_determinism():
        raise RuntimeError("shape mismatch")
