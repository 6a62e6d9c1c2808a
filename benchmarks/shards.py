"""Shards against files: images per second, bytes read and memory, in a folder and over a network.

    python -m benchmarks.shards                                2,000 photographs of noise, 300 x 225 pixels
    python -m benchmarks.shards --data DATA/flower_photos      class folders of real ones
    python -m benchmarks.shards --opening 50000                time and memory to open a set of this number of images
    python -m benchmarks.shards --index 3000000                the same of an index alone

The network is a server on this machine that waits before each answer (--latency). Files are removed from the page cache
before the rows that are called cold. Each row is the median of --repeats, in turn with the others.
"""

import argparse
import io
import logging
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import Process, Value
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from graft.data.augment import Augment
from graft.data.datamodule import ImageDataModule
from graft.data.loading import load_published, load_splits
from graft.data.packed import Packed
from graft.data.preprocessing import Preprocessing
from graft.data.shards.index import ROW, Index, Shard
from graft.data.shards.packing import Options, Packing, pack
from graft.data.splits import Splits


class Server:
    """A server of the files of a folder, in a process of its own, that counts what it sends."""

    def __init__(self, folder: Path, latency: float) -> None:
        self.sent, self.requests, self.port = Value("q", 0), Value("q", 0), Value("i", 0)
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_: Any) -> None:
                pass

            def do_GET(self) -> None:
                time.sleep(latency)
                file = folder / self.path.lstrip("/")
                span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
                size = file.stat().st_size
                begin, end = (int(span[1]), min(int(span[2]) + 1, size)) if span else (0, size)
                with file.open("rb") as opened:
                    opened.seek(begin)
                    content = opened.read(end - begin)
                self.send_response(206 if span else 200)
                self.send_header("Content-Length", str(len(content)))
                if span:
                    self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{size}")
                self.end_headers()
                self.wfile.write(content)
                with server.sent.get_lock():
                    server.sent.value += len(content)
                    server.requests.value += 1

        def serve() -> None:
            listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
            self.port.value = listening.server_port
            listening.serve_forever()

        self.process = Process(target=serve, daemon=True)
        self.process.start()
        while not self.port.value:
            time.sleep(0.01)

    def counted(self) -> tuple[int, int]:
        """(bytes sent, requests) since the last call."""
        counted = self.sent.value, self.requests.value
        self.sent.value = self.requests.value = 0
        return counted


def make_photographs(root: Path, count: int) -> None:
    """`count` JPEGs of smooth noise in ten class folders, of about 20 kB."""
    for number in range(count):
        pixels = np.random.RandomState(number).randint(0, 256, (75, 100, 3), dtype=np.uint8)
        file = root / f"class{number % 10}" / f"{number}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((300, 225), Image.Resampling.BICUBIC).save(file, quality=85)


def opened(name: str, root: str | Path, **arguments: Any) -> Splits:
    return load_splits(name, root=Path(root), seed=0, val_fraction=0.1, arguments=arguments)


def read_rate(splits: Splits) -> tuple[float, int]:
    """(images per second, bytes) of reading the encoded training images in a random order."""
    images, read = splits.train, 0
    order = np.random.RandomState(0).permutation(len(images)).tolist()
    paths = images.paths
    assert paths is not None
    started = time.perf_counter()
    for index in order:
        file: Any = paths[index]
        read += len(file.read_bytes() if isinstance(file, Path) else file.archive.read(file.number))
    return len(order) / (time.perf_counter() - started), read


def loader_rate(splits: Splits, workers: int, epoch: int = 0) -> float:
    """Images per second of an epoch of batches, cropped at random to 224 pixels."""
    augment = Augment(random_resized_crop={}, horizontal_flip=0.5)
    data = ImageDataModule(
        splits, Preprocessing(224, 256), augment, batch_size=32, num_workers=workers, seed=0, resident_gb=0
    )
    loader = data.train_dataloader()
    loader.load_state_dict({"epoch": epoch, "batches": 0})
    started = time.perf_counter()
    for _ in loader:
        pass
    return len(splits.train) / (time.perf_counter() - started)


def forget(folder: Path) -> None:
    """Remove the files of a folder from the page cache."""
    for file in folder.rglob("*"):
        if file.is_file():
            opened = os.open(file, os.O_RDONLY)
            os.fsync(opened)
            os.posix_fadvise(opened, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(opened)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="shards_"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def compare(options: argparse.Namespace, folder: Path) -> None:
    """Print the table of rates."""
    photos = options.data or folder / "photos"
    if options.data is None:
        make_photographs(photos, options.images)
    published, _ = load_published("folder", root=photos, seed=0)
    started = time.perf_counter()
    index = pack(Packing.of(published, Options(options.shard_mb), (), {}), folder / "shards")
    took, total = time.perf_counter() - started, len(index.rows)
    size = sum(file.stat().st_size for file in (folder / "shards").iterdir())
    original = int(index.rows["size"].sum())
    print(
        f"packed {total:,} images, {original / 1e6:.1f} MB, in {took:.1f} s: {len(index.shards)} shards, "
        f"{size / 1e6:.1f} MB ({size / original:.3f} times)"
    )
    server = Server(folder / "shards", options.latency / 1000)
    address = f"http://127.0.0.1:{server.port.value}"
    largest = max(shard.filesize for shard in index.shards) / 2**30
    small = {"cache_gb": (options.window + 2.5) * largest, "window": options.window}
    caches = iter(range(10**6))

    def remote(**arguments: Any) -> Splits:
        return opened("shards", address, cache=str(folder / f"cache{next(caches)}"), **arguments)

    files, shards = opened("folder", photos), opened("shards", folder / "shards")
    warm = remote()
    loader_rate(warm, options.workers)

    def cold(measure: Callable[[], Any], forgotten: Path) -> Callable[[], Any]:
        def run() -> Any:
            forget(forgotten)
            return measure()

        return run

    workers = options.workers
    rows: dict[str, Callable[[], Any]] = {
        "read, files": lambda: read_rate(files)[0],
        "read, shards": lambda: read_rate(shards)[0],
        "read, files, cold": cold(lambda: read_rate(files)[0], photos),
        "read, shards, cold": cold(lambda: read_rate(shards)[0], folder / "shards"),
        "batches, files": lambda: loader_rate(files, workers),
        "batches, shards": lambda: loader_rate(shards, workers),
        "batches, remote, order=shards, empty cache": lambda: loader_rate(remote(**small, order="shards"), workers),
        "batches, remote, order=random, single images": lambda: loader_rate(
            remote(cache_gb=1e-9, order="random"), workers
        ),
        "batches, remote, all shards in the cache": lambda: loader_rate(warm, workers),
    }
    results: dict[str, list[tuple[float, int, int]]] = {name: [] for name in rows}
    for _ in range(options.repeats):
        for name, measure in rows.items():
            server.counted()
            rate = measure()
            results[name].append((rate, *server.counted()))
    trained = int(index.rows["size"].sum() * len(files.train) / total)
    for name, measured in results.items():
        rates = sorted(rate for rate, _, _ in measured)
        base = statistics.median(rate for rate, _, _ in results[f"{name.split(',')[0]}, files"])
        sent, requests = (statistics.median(column) for column in list(zip(*measured, strict=True))[1:])
        network = f"  {sent / trained:5.2f} times the bytes, {requests:,.0f} requests" if sent else ""
        print(
            f"{name:<46}{statistics.median(rates):8.0f} images/s ({rates[0]:.0f} to {rates[-1]:.0f})"
            f"{statistics.median(rates) / base:7.2f} of files{network}"
        )
    server.process.terminate()


def memory() -> tuple[int, int]:
    """Bytes of this process's memory that are its own, and that are mapped files."""
    status = Path("/proc/self/status").read_text()
    own, mapped = (int(re.findall(rf"{name}:\s+(\d+) kB", status)[0]) * 1024 for name in ("RssAnon", "RssFile"))
    return own, mapped


def open_set(name: str, root: str) -> None:
    """Print the seconds and the memory that opening a set, dividing it and starting an epoch take."""
    before, peak = memory(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    splits = load_splits(name, root=Path(root), seed=0)
    took, count = time.perf_counter() - started, sum(map(len, splits.parts().values()))
    data = ImageDataModule(
        splits, Preprocessing(32, 32), Augment(random_resized_crop={}), batch_size=32, num_workers=0, resident_gb=0
    )
    loader = data.train_dataloader()
    next(iter(loader.sampler))
    own, mapped = (now - then for now, then in zip(memory(), before, strict=True))
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
    print(
        f"open, {name:<8}{took:7.1f} s, to the first batch {time.perf_counter() - started:.1f} s; bytes an image: "
        f"{own / count:.0f} of its own, {mapped / count:.0f} mapped, {peak / count:.0f} at the peak"
    )


def compare_opening(count: int, folder: Path) -> None:
    """Print the cost of opening `count` images, each way in a process of its own."""
    content = io.BytesIO()
    Image.new("RGB", (8, 8)).save(content, "JPEG")
    for number in range(count):
        file = folder / "photos" / f"class_{number % 100:05d}" / f"IMG_{number:09d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.getvalue())
    published, _ = load_published("folder", root=folder / "photos", seed=0)
    pack(Packing.of(published, Options(64), (), {}), folder / "shards")
    tables = sum(file.stat().st_size for file in (folder / "shards").glob("*.npy"))
    print(f"index of {count:,} images: {tables / 1e6:.1f} MB, {tables / count:.0f} bytes an image")
    for name, root in (("folder", "photos"), ("shards", "shards")):
        words = [sys.executable, "-m", "benchmarks.shards", "--open", name, str(folder / root)]
        print(subprocess.run(words, check=True, capture_output=True, text=True).stdout, end="")


def write_index(count: int, folder: Path) -> None:
    """The index of `count` images in shards without content."""
    each, size = 5000, 20_000
    rows = np.zeros(count, ROW)
    rows["label"], rows["shard"] = np.arange(count) * 1000 // count, np.arange(count) // each
    rows["offset"], rows["size"] = np.arange(count) % each * size, size
    shards = tuple(Shard(f"train-{number:06d}.tar", each, each * size, "") for number in range(-(-count // each)))
    folder.mkdir()
    for shard in shards:
        with (folder / shard.url).open("wb") as file:
            file.truncate(shard.filesize)
    split = {"test_fraction": 0.1, "split_seed": 0, "test_on_rest": False}
    names = Packed.of((f"class_{row * 1000 // count:05d}/IMG_{row:09d}.jpg" for row in range(count)), str)
    classes = tuple(f"class_{number:05d}" for number in range(1000))
    Index(classes, {"train": count}, shards, rows, names, None, {}, split).write(folder, {})


def compare_opening_of_index(count: int, folder: Path) -> None:
    """Print the cost of opening the index of `count` images."""
    write_index(count, folder / "shards")
    words = [sys.executable, "-m", "benchmarks.shards", "--open", "shards", str(folder / "shards")]
    print(f"{count:,} images  {subprocess.run(words, check=True, capture_output=True, text=True).stdout}", end="")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="class folders")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--shard-mb", type=float, default=4)
    parser.add_argument("--window", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--latency", type=float, default=20, help="milliseconds")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--opening", type=int, help="number of images to open")
    parser.add_argument("--index", type=int, help="number of images of an index without shards to open")
    parser.add_argument("--open", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.getLogger("graft").setLevel(logging.ERROR)
    if options.open:
        open_set(*options.open)
        return
    with temporary_folder() as folder:
        if options.opening:
            compare_opening(options.opening, folder)
        elif options.index:
            compare_opening_of_index(options.index, folder)
        else:
            compare(options, folder)


if __name__ == "__main__":
    main()
