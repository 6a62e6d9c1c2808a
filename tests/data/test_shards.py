"""A packed data set gives the same images, splits, order and randomness as its files, wherever its shards are."""

import io
import itertools
import json
import os
import pickle
import re
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import TINY, command, succeeded
from one_training_step import composed, run_one_step
from PIL import Image

from graft.data.augment import Augment
from graft.data.datamodule import ImageDataModule
from graft.data.datasets import Batch
from graft.data.loading import load_published, load_splits, unused_of
from graft.data.preprocessing import Preprocessing
from graft.data.sampler import EpochSampler
from graft.data.scan import exclude_unreadable
from graft.data.shards.packing import Options, Packing, pack, require_output
from graft.data.splits import Splits
from graft.data.stored import Blocks
from graft.errors import ConfigError, DataError, NotAvailable, RecordError, UnreadableImage


def noise(file: Path, seed: int, format: str = "JPEG") -> None:
    """A photograph-like file of noise, each of another content."""
    pixels = np.random.RandomState(seed).randint(0, 256, (20 + seed % 5, 24, 3), dtype=np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format)
    file.write_bytes(content.getvalue())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of 24 images, in folders of four cameras, with names that need care, and two files that are none."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(48):
        name = ("a.b.jpg", "é.jpg", "n.PNG", "plain.jpeg")[number % 4]
        file = root / ("cat", "dog")[number % 2] / f"camera{number // 4 % 4}" / f"{number}_{name}"
        noise(file, number, "PNG" if name.endswith("PNG") else "JPEG")
    (root / "cat" / "notes.txt").write_text("no image")
    return root


def packed(folder: Path, source: str, root: Path | None, *, shard_mb: float = 0.01, **options: Any) -> Path:
    """The data set of `source`, packed into `folder`."""
    published, found = load_published(source, root=root, seed=0, **options)
    pack(Packing.of(published, Options(shard_mb), unused_of(published, found), {}), folder)
    return folder


@pytest.fixture(scope="module")
def shards(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`photos` in shards of a few images."""
    return packed(tmp_path_factory.mktemp("packed") / "shards", "folder", photos)


def opened(root: Path | str, cache: Path | None = None, **options: Any) -> Splits:
    arguments = options.pop("arguments", {}) | ({} if cache is None else {"cache": str(cache)})
    return load_splits("shards", root=Path(root), seed=options.pop("seed", 3), arguments=arguments, **options)


def batches(splits: Splits, workers: int = 0, epoch: int = 1, skip: int = 0) -> list[Batch]:
    """The training batches of an epoch, cropped at random from the files."""
    augment = Augment(random_resized_crop={}, horizontal_flip=0.5)
    data = ImageDataModule(
        splits, Preprocessing(16, 16), augment, batch_size=4, num_workers=workers, seed=5, resident_gb=0
    )
    loader = data.train_dataloader()
    loader.load_state_dict({"epoch": epoch, "batches": skip})
    return list(loader)


def equal(first: list[Batch], second: list[Batch]) -> bool:
    return len(first) == len(second) and all(
        torch.equal(mine, other) for pair in zip(first, second, strict=True) for mine, other in zip(*pair, strict=True)
    )


def test_shards_give_the_splits_names_contents_and_batches_of_the_files(photos: Path, shards: Path) -> None:
    for options in ({}, {"shots": 4}, {"folds": 3, "fold": 1}, {"group_pattern": "/(camera[0-9])/"}):
        files, stored = (load_splits(name, root=root, seed=3, **options) for name, root in
                         (("folder", photos), ("shards", shards)))  # fmt: skip
        for mine, other in zip(files.parts().values(), stored.parts().values(), strict=True):
            assert list(mine.names) == list(other.names)
            assert mine.labels.tolist() == other.labels.tolist()
            assert (mine.identities() == other.identities()).all()
            assert (mine.samples() == other.samples()).all()
            assert mine.load(0).tobytes() == other.load(0).tobytes()
        assert (files.classes, files.source, files.fingerprint()) == (
            stored.classes,
            stored.source,
            stored.fingerprint(),
        )
        assert (files.notes, files.unused) == (stored.notes, stored.unused)
    expected = batches(load_splits("folder", root=photos, seed=3))
    assert equal(expected, batches(opened(shards)))
    assert equal(expected, batches(opened(shards), workers=2))
    assert equal(expected[3:], batches(opened(shards), workers=2, skip=3))
    assert equal(expected, batches(pickle.loads(pickle.dumps(opened(shards)))))  # as a process of DDP gets them


def test_multi_part_sets_groups_and_sets_in_memory_survive(tmp_path: Path, photos: Path) -> None:
    for number in range(12):
        noise(tmp_path / "parts" / ("train", "val", "test")[number % 3] / "ab"[number // 6] / f"{number}.png", number)
    for name, root, options in (
        ("folder", tmp_path / "parts", {}),
        ("folder", photos, {"group_pattern": "/(camera[0-9])/"}),
        ("digits", None, {}),
    ):
        folder = packed(tmp_path / f"{name}{len(options)}{root is None}", name, root, shard_mb=1, **options)
        mine, other = load_splits(name, root=root, seed=1, **options), opened(folder, seed=1)
        for here, there in zip(mine.parts().values(), other.parts().values(), strict=True):
            assert list(here.names) == list(there.names)
            assert all(np.array_equal(here.load(row), there.load(row)) for row in range(len(here)))
        assert [note for note in mine.notes if "group" in note] == [note for note in other.notes if "group" in note]


def test_a_shard_is_a_webdataset_with_the_original_bytes(photos: Path, shards: Path) -> None:
    seen = []
    for described in json.loads((shards / "index.json").read_bytes())["shardlist"]:
        with tarfile.open(shards / described["url"]) as tar:
            members = [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]
        samples = [list(group) for _, group in itertools.groupby(members, lambda each: each[0].partition(".")[0])]
        assert len(samples) == described["nsamples"]
        for sample in samples:
            image, label, text = (content for _, content in sample)
            about = json.loads(text)
            assert [name.partition(".")[2] for name, _ in sample][1:] == ["cls", "json"]
            assert image == (photos / about["name"]).read_bytes()
            assert about["class"] == about["name"].partition("/")[0] == ("cat", "dog")[int(label)]
            seen.append(about["name"])
    assert sorted(seen) == sorted(file.relative_to(photos).as_posix() for file in photos.rglob("*_*"))


def test_blocks_order_reads_every_image_once_from_a_few_blocks_at_a_time() -> None:
    blocks = Blocks(np.random.RandomState(0).permutation(np.arange(600) // 10), window=4)
    for world in (1, 2, 3):
        samplers = [
            EpochSampler(600, seed=1, shuffle=True, rank=rank, world=world, blocks=blocks) for rank in range(world)
        ]
        orders = [[index for _, index in sampler] for sampler in samplers]
        assert sorted(itertools.chain(*orders)) == list(range(600))
        for order in orders:
            first = dict.fromkeys(blocks.of[order].tolist())
            spans = [np.flatnonzero(blocks.of[order] == block) for block in first]
            active = Counter(step for span in spans for step in range(span[0], span[-1] + 1))
            assert max(active.values()) <= 6
    samplers[0].set_epoch(1)
    assert [index for _, index in samplers[0]] != orders[0]
    samplers[0].start = 50
    resumed = [index for _, index in samplers[0]]
    assert resumed == [index for _, index in samplers[0]][50:]


def test_a_run_from_a_web_server_equals_the_run_from_files(
    photos: Path, shards: Path, http_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in shards.iterdir():
        (http_server.folder / file.name).write_bytes(file.read_bytes())
    words = [word for word in TINY if not word.startswith(("data=", "data.num_workers"))]
    words += ["data.batch_size=8", "trainer.max_epochs=1", "data.resident_gb=0", "logger=none"]
    words += [f"paths.cache={tmp_path}/cache", "callbacks.progress=none"]
    files = composed(*words, "data=folder", f"data.root={photos}", "data.num_workers=0")
    served = composed(*words, "data=shards", f"data.root={http_server.url}", "data.num_workers=2")
    metrics, states = [], []
    for name, config in (("files", files), ("served", served)):
        metrics.append(run_one_step(config, tmp_path / name, monkeypatch)["metrics"])
        content = torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True)
        states.append(content["state_dict"])
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert metrics[0] == metrics[1]
    fetched = Counter(path for path, _ in http_server.requests)
    tars = {f"/{file.name}" for file in shards.glob("*.tar")}
    assert {path for path in fetched if path.endswith(".tar")} == tars
    assert all(fetched[path] == 1 for path in tars), "workers did not share the cache"


def test_a_remote_set_larger_than_the_cache_is_read_by_shards_or_by_single_images(
    shards: Path, http_server: Any, tmp_path: Path
) -> None:
    for file in shards.iterdir():
        (http_server.folder / file.name).write_bytes(file.read_bytes())
    sizes = {file.name: file.stat().st_size for file in shards.glob("*.tar")}
    cache = tmp_path / "cache"
    limit = {"cache_gb": 3.5 * max(sizes.values()) / 2**30}
    single = opened(http_server.url, cache, arguments=limit | {"order": "random"})
    http_server.requests.clear()
    assert equal(batches(opened(shards)), batches(single))
    assert all(span is not None for _, span in http_server.requests)
    assert not list(cache.glob("*.tar"))

    with pytest.raises(ConfigError, match=r"17 shards of data.window=16 take"):
        opened(http_server.url, cache, arguments=limit)
    by_shard = opened(http_server.url, cache, arguments=limit | {"window": 2})
    assert any("mixed from 2 of the" in note for note in by_shard.notes)
    expected = batches(opened(shards, arguments={"order": "shards", "window": 2}))
    http_server.requests.clear()
    assert equal(expected, batches(by_shard))
    requests = Counter(path for path, _ in http_server.requests)
    assert sorted(np.concatenate([batch.indices for batch in expected])) == list(range(len(by_shard.train)))
    assert max(requests.values()) == 1, "a shard was fetched twice within an epoch"
    assert sum(file.stat().st_size for file in cache.glob("*.tar")) <= limit["cache_gb"] * 2**30
    with pytest.raises(ConfigError, match=r"data\.sampler=balanced.*data\.order=shards"):
        ImageDataModule(by_shard, Preprocessing(16, 16), Augment(), batch_size=4, balanced=True).train_dataloader()


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """An S3 client with an empty bucket called `photos`, in memory."""
    moto = pytest.importorskip("moto")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    import boto3

    with moto.mock_aws():
        client = boto3.client("s3")
        client.create_bucket(Bucket="photos")
        yield client


def test_shards_in_s3_give_the_same_batches_and_a_wrong_one_is_named(
    shards: Path, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from botocore.exceptions import ResponseStreamingError
    from botocore.response import StreamingBody

    from graft.system import downloads

    for file in shards.iterdir():
        bucket.put_object(Bucket="photos", Key=f"sets/1/{file.name}", Body=file.read_bytes())
    expected = batches(opened(shards))
    assert equal(expected, batches(opened("s3://photos/sets/1", tmp_path / "whole")))
    single = {"cache_gb": 1e-9, "order": "random"}
    assert equal(expected, batches(opened("s3://photos/sets/1/", tmp_path / "single", arguments=single)))
    with pytest.raises(NotAvailable, match=r"s3://photos/sets/2/index\.json"):
        opened("s3://photos/sets/2", tmp_path / "other")
    read, breaks = StreamingBody.read, iter([True, True])
    monkeypatch.setattr(downloads, "BACKOFF", 0.01)

    def breaking(self: Any, amt: int | None = None) -> bytes:
        if next(breaks, False):
            raise ResponseStreamingError(error="the connection broke")
        return read(self, amt)

    monkeypatch.setattr(StreamingBody, "read", breaking)
    assert equal(expected, batches(opened("s3://photos/sets/1", tmp_path / "breaking", arguments=single)))
    assert next(breaks, None) is None
    changed = sorted(shards.glob("*.tar"))[0]
    bucket.put_object(Bucket="photos", Key=f"sets/1/{changed.name}", Body=bytes(changed.stat().st_size))
    with pytest.raises(DataError, match=rf"s3://photos/sets/1/{changed.name}: its checksum"):
        batches(opened("s3://photos/sets/1", tmp_path / "again"))


def test_damaged_truncated_and_missing_shards_are_named(photos: Path, tmp_path: Path) -> None:
    root = packed(tmp_path / "shards", "folder", photos)
    shard = root / "train-000001.tar"
    whole = shard.read_bytes()
    images = opened(root).train
    place = next(row for row, file in enumerate(images.paths or ()) if str(shard) in str(file))
    row = images.paths.archive.index.rows[images.paths.numbers[place]]  # type: ignore[union-attr]
    damaged = bytearray(whole)
    damaged[int(row["offset"]) + 100] ^= 1
    shard.write_bytes(damaged)
    with pytest.raises(UnreadableImage, match=rf"{shard}: {images.names[place]}: .*the checksum is wrong"):
        opened(root).train.load(place)
    shard.write_bytes(whole[: int(row["offset"]) + 100])
    with pytest.raises(UnreadableImage, match=r"train-000001\.tar: .*truncated"):
        images.load(place)
    with pytest.raises(DataError, match=r"train-000001\.tar: the shard is truncated: it has"):
        opened(root)
    shard.unlink()
    with pytest.raises(DataError, match=r"train-000001\.tar: the shard cannot be read \(No such file"):
        opened(root)
    (root / "names.npy").write_bytes((root / "names.npy").read_bytes()[:-1] + b"x")
    with pytest.raises(DataError, match=r"names\.npy: its checksum"):
        opened(root)


@pytest.mark.parametrize("changed", ['"url": "../outside.tar"', '"sha256": "../../outside"'])
def test_an_index_cannot_name_files_outside_of_its_folder(changed: str, shards: Path, tmp_path: Path) -> None:
    for file in shards.iterdir():
        os.link(file, tmp_path / file.name)
    index = (shards / "index.json").read_text()
    (tmp_path / "index.json").unlink()
    key = changed.partition(":")[0]
    (tmp_path / "index.json").write_text(re.sub(rf"{key}: \"[^\"]+\"", changed, index))
    with pytest.raises(RecordError, match=r"outside.*refused"):
        opened(tmp_path)


def test_an_interrupted_packing_resumes_and_other_folders_are_refused(photos: Path, tmp_path: Path) -> None:
    published, _ = load_published("folder", root=photos, seed=0)
    folder = tmp_path / "shards"

    def interrupt(count: int) -> None:
        if len(list(folder.glob("*.tar"))) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(Packing.of(published, Options(0.01), (), {}), folder, interrupt)
    assert not (folder / "index.json").exists()
    done = {file.name: file.stat().st_mtime_ns for file in folder.glob("*.tar")}
    require_output(folder)
    with pytest.raises(ConfigError, match="unfinished output of other images or options"):
        pack(Packing.of(published, Options(0.02), (), {}), folder)
    pack(Packing.of(published, Options(0.01), (), {}), folder)
    assert {name: (folder / name).stat().st_mtime_ns for name in done} == done
    assert equal(batches(load_splits("folder", root=photos, seed=3)), batches(opened(folder)))
    assert not (folder / ".packing").exists()
    with pytest.raises(ConfigError, match="holds a packed data set"):
        require_output(folder)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ConfigError, match=r"is not empty \(x\)"):
        require_output(tmp_path / "full")


def test_unreadable_images_are_refused_or_packed_as_they_are(photos: Path, tmp_path: Path) -> None:
    for file in photos.rglob("*_*"):
        copy = tmp_path / "photos" / file.relative_to(photos)
        copy.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, copy)
    broken = sorted((tmp_path / "photos").rglob("*.jpeg"))[2]
    content = broken.read_bytes()
    broken.unlink()
    broken.write_bytes(content[:300])
    words = ("pack", "data=folder", f"data.root={tmp_path}/photos", f"output={tmp_path}/shards", "shard_mb=0.01")
    refused = command(tmp_path / "run", "-m", "graft.cli", *words)
    assert refused.code == 1
    assert f"1 images cannot be read: {broken.relative_to(tmp_path / 'photos')} (truncated" in refused.err
    assert not (tmp_path / "shards").exists()
    done = succeeded(command(tmp_path / "run", "-m", "graft.cli", *words, "data.on_error=skip"))
    assert "1 unreadable images are packed as they are (truncated)" in done.out
    files, stored = (
        exclude_unreadable(load_splits(name, root=tmp_path / folder, seed=0), "skip")
        for name, folder in (("folder", "photos"), ("shards", "shards"))
    )
    assert files.unreadable == stored.unreadable
    assert [list(part.names) for part in files.parts().values()] == [
        list(part.names) for part in stored.parts().values()
    ]
    again = command(tmp_path / "run", "-m", "graft.cli", *words, "data.shots=2")
    assert "data.shots: all images are packed" in again.err


def test_short_side_scales_down_larger_images_and_keeps_the_others(photos: Path, tmp_path: Path) -> None:
    published, _ = load_published("folder", root=photos, seed=0)
    pack(Packing.of(published, Options(1, short_side=21), (), {}), tmp_path / "shards")
    before, after = load_splits("folder", root=photos, seed=0).train, opened(tmp_path / "shards", seed=0).train
    sizes = {min(after.load(row).size) for row in range(len(after))}
    assert sizes == {20, 21}
    small = [row for row in range(len(before)) if min(before.load(row).size) <= 21]
    assert all(before.identities()[row] == after.identities()[row] for row in small)
