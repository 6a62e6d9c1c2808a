"""The order of images per epoch and process."""

from collections import Counter

import numpy as np
import numpy.typing as npt
import pytest

from graft.data.sampler import PADDING, EpochSampler, stratified_order


def sampler(length: int, shuffle: bool = True, seed: int = 0, **options: int) -> EpochSampler:
    return EpochSampler(length, seed=seed, shuffle=shuffle, **options)


def indices(of: EpochSampler) -> list[int]:
    return [index for _, index in of]


@pytest.mark.parametrize("length", [0, 1, 3, 8, 10, 11])
@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_evaluation_shards_contain_each_image_exactly_once(length: int, world: int) -> None:
    shards = [indices(sampler(length, shuffle=False, rank=rank, world=world)) for rank in range(world)]
    assert len({len(shard) for shard in shards}) == 1, "all processes take the same number of steps"
    assert Counter(i for shard in shards for i in shard if i != PADDING) == Counter(range(length))


@pytest.mark.parametrize("world", [1, 2, 3])
def test_training_shards_are_of_one_size_and_cover_the_set(world: int) -> None:
    shards = [sampler(10, rank=rank, world=world) for rank in range(world)]
    seen = Counter(i for shard in shards for i in indices(shard))
    assert set(seen) == set(range(10))
    assert len({len(indices(shard)) for shard in shards}) == 1
    assert seen.total() - 10 < world
    assert [len(shard) for shard in shards] == [len(indices(shard)) for shard in shards]


def test_each_epoch_has_a_different_order_and_reports_its_number() -> None:
    one = sampler(50)
    first = list(one)
    one.set_epoch(1)
    second = list(one)
    assert {epoch for epoch, _ in second} == {1}
    assert [i for _, i in first] != [i for _, i in second]
    one.set_epoch(0)
    assert list(one) == first
    assert list(sampler(50, seed=1)) != first


def test_evaluation_always_has_the_same_order() -> None:
    one = sampler(5, shuffle=False)
    one.set_epoch(3)
    assert list(one) == [(3, i) for i in range(5)]


@pytest.mark.parametrize(("length", "batch", "expected"), [(9, 4, 8), (8, 4, 8), (10, 4, 10), (1, 4, 1), (5, 1, 5)])
def test_a_last_batch_of_one_image_is_dropped(length: int, batch: int, expected: int) -> None:
    one = sampler(length, drop_last_of=batch)
    assert len(one) == len(indices(one)) == expected


def test_over_the_epochs_every_image_is_dropped_at_some_time() -> None:
    one, seen = sampler(5, drop_last_of=4), set()
    for epoch in range(40):
        one.set_epoch(epoch)
        seen |= set(range(5)) - set(indices(one))
    assert seen == set(range(5))


@pytest.mark.parametrize("world", [1, 2])
def test_a_skip_gives_the_rest_of_the_same_epoch_once(world: int) -> None:
    one = sampler(20, rank=0, world=world)
    one.set_epoch(2)
    whole = list(one)
    one.start = 6
    assert list(one) == whole[6:]
    assert len(one) == len(whole)
    assert list(one) == whole


def test_a_skip_is_reset_when_the_epoch_changes_and_kept_when_the_same_epoch_is_set_again() -> None:
    one = sampler(20)
    one.set_epoch(2)
    one.start = 6
    one.set_epoch(2)
    assert one.start == 6
    one.set_epoch(3)
    assert one.start == 0


def test_every_beginning_of_a_stratified_order_has_all_classes_in_proportion() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])  # sorted by class, as folders are
    order = stratified_order(labels, seed=3)
    assert sorted(order) == list(range(100))
    for count in (10, 20, 50):
        shares = np.bincount(labels[order[:count]], minlength=3) / count
        assert shares == pytest.approx([0.6, 0.3, 0.1], abs=0.1), count
    assert order == stratified_order(labels, seed=3) != stratified_order(labels, seed=4)


LONG_TAIL = np.repeat([0, 1, 2], [60, 30, 10])


def balanced(epoch: int = 0, labels: npt.NDArray[np.int64] = LONG_TAIL, **options: int) -> EpochSampler:
    one = EpochSampler(len(labels), seed=0, shuffle=True, balance=labels, **options)  # type: ignore[arg-type]
    one.set_epoch(epoch)
    return one


@pytest.mark.parametrize("world", [1, 3])
def test_a_balanced_epoch_has_as_many_images_as_without_and_equally_many_of_each_class(world: int) -> None:
    shards = [indices(balanced(rank=rank, world=world)) for rank in range(world)]
    assert [len(shard) for shard in shards] == [len(sampler(100, rank=0, world=world))] * world
    drawn = Counter(LONG_TAIL[index % 100] for shard in shards for index in shard)
    assert max(drawn.values()) - min(drawn.values()) <= 1


def test_a_balanced_epoch_repeats_small_classes_evenly_under_new_indices_and_large_ones_not_at_all() -> None:
    drawn = indices(balanced())
    assert len(set(drawn)) == 100, "a repeated image has another index, so that it is augmented differently"
    times = Counter(index % 100 for index in drawn)
    of_class = {label: [times[image] for image in np.nonzero(LONG_TAIL - label == 0)[0]] for label in range(3)}
    assert max(of_class[0]) == 1
    assert set(of_class[2]) <= {3, 4}


def test_a_balanced_order_is_a_function_of_seed_and_epoch_and_over_the_epochs_uses_every_image() -> None:
    epochs = [indices(balanced(epoch)) for epoch in range(12)]
    assert epochs == [indices(balanced(epoch)) for epoch in range(12)]
    assert epochs[0] != epochs[1]
    assert {index % 100 for epoch in epochs for index in epoch} == set(range(100))
    resumed = balanced(3)
    resumed.start = 40
    assert indices(resumed) == epochs[3][40:]


def test_a_class_without_images_is_not_drawn() -> None:
    assert Counter(indices(balanced(labels=np.array([0, 2, 2, 2])))).total() == 4
