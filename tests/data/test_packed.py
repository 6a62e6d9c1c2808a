"""A packed sequence equals a list in less memory."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.data.packed import Packed

settings.register_profile("the same every time", derandomize=True, deadline=None)
settings.load_profile("the same every time")

STRINGS = st.lists(st.text(st.characters(exclude_categories=["Cs"]) | st.just("\udcb0"), max_size=9), max_size=9)


@given(STRINGS, st.data())
def test_a_packed_list_equals_the_list(strings: list[str], data: st.DataObject) -> None:
    packed = Packed.of(strings, str)
    assert packed == strings
    assert list(packed) == strings
    assert [packed[index] for index in range(-len(strings), len(strings))] == strings + strings
    assert len(packed) == len(strings)
    assert pickle.loads(pickle.dumps(packed)) == packed
    some = data.draw(st.slices(len(strings)))
    assert packed[some] == strings[some]
    if strings:
        chosen = data.draw(st.lists(st.integers(-len(strings), len(strings) - 1), max_size=12))
        assert packed.select(np.array(chosen, dtype=np.int64)) == [strings[index] for index in chosen]
        assert strings[0] in packed
    with pytest.raises(IndexError):
        packed[len(strings)]


@given(st.lists(STRINGS, min_size=1, max_size=4))
def test_joined_packed_lists_equal_the_concatenated_lists(lists: list[list[str]]) -> None:
    packed = Packed.joined([Packed.of(strings, str) for strings in lists])
    assert packed == [string for strings in lists for string in strings]


def test_elements_may_be_converted() -> None:
    packed = Packed.of(["a/b", "c"], Path)
    assert [*packed, packed[np.int64(1)]] == [Path("a/b"), Path("c"), Path("c")]
    assert packed != Packed.of(["a/b", "c"], str)
    assert packed != 3


def test_a_million_names_take_little_more_than_their_letters() -> None:
    packed = Packed.of((f"train/class_{i % 100}/{i:07d}.jpg" for i in range(10_000)), str)
    assert len(packed.text) + packed.ends.nbytes < 10_000 * 36
