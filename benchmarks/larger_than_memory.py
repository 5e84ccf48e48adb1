"""20 GB of images in a memory-mapped npy file, in a process that may have 2 GB of memory (RLIMIT_DATA). Linux only.

`load` is the pass before training: all 407,000 images of 3x128x128 pixels are read, hashed and summed up for mean and
standard deviation. Then a network of 2,000 weights is pruned and trained for 50 steps of 256 images from all over the file,
and validated on 1,400, each image read when it is needed. `plain read` reads the same file from beginning to end, and
`SHA-256` hashes as many bytes in memory: the part of `load` that hashing takes. The file's pages are dropped from the
kernel's cache before each stage. `anonymous` is the highest RssAnon of /proc/self/status so far, sampled every 20 ms; pages
of the file do not count. `python benchmarks/larger_than_memory.py --gigabytes 5` prints a smaller one.
"""

import argparse
import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from timing import THREADS

SHAPE, CLASSES, BATCH, STEPS = (3, 128, 128), 10, 256, 50
LIMIT = 2 * 10**9  # bytes
CHUNK = 2**24
KEYS = ("stage", "bytes", "seconds", "GB/s", "anonymous, MB")


def main(quick: bool = False) -> list[dict[str, object]]:
    return measured(0.3 if quick else 20.0)


def measured(gigabytes: float) -> list[dict[str, object]]:
    if sys.platform != "linux":
        return []
    needed, free = int(gigabytes * 1e9), shutil.disk_usage(tempfile.gettempdir()).free
    if free < 1.2 * needed:
        raise SystemExit(f"{tempfile.gettempdir()} has {free / 1e9:.0f} GB free, too few for {gigabytes:g} GB")
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        size = generate(Path(folder), needed)
        rows = [row("generate", size, time.perf_counter() - started, None)]
        command = [sys.executable, str(Path(__file__)), "--inside", folder]
        environment = {"GOMP_SPINCOUNT": "10000", **os.environ}  # as the command line does
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr.strip())
        return rows + json.loads(done.stdout)  # type: ignore[no-any-return]


def generate(folder: Path, needed: int) -> int:
    """inputs.npy (N, 3, 128, 128) uint8 and labels.npy; returns the size of the inputs in bytes."""
    count = needed // int(np.prod(SHAPE))
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, 2 * CHUNK, np.uint8)
    with open(folder / "inputs.npy", "wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (count, *SHAPE)}
        np.lib.format.write_array_header_1_0(file, header)
        left = size = count * int(np.prod(SHAPE))
        while left:
            start = int(rng.integers(CHUNK))
            left -= file.write(noise[start : start + min(left, CHUNK)].data)
        file.flush()
        os.fsync(file.fileno())
    np.save(folder / "labels.npy", np.arange(count) % CLASSES)
    return size


def row(stage: str, size: int, seconds: float, anonymous: int | None) -> dict[str, object]:
    megabytes = "" if anonymous is None else f"{anonymous / 1e6:.0f}"
    return dict(zip(KEYS, (stage, f"{size:,}", f"{seconds:.1f}", f"{size / 1e9 / seconds:.2f}", megabytes), strict=True))


def inside(folder: Path) -> list[dict[str, object]]:
    """The stages, in a process with a limit on its memory."""
    import torch
    from torch import nn

    import subnet_search as ss
    from subnet_search.data import load

    torch.set_num_threads(THREADS)
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    path, rows = folder / "inputs.npy", list[dict[str, object]]()
    size = path.stat().st_size
    with highest() as anonymous:

        def stage(name: str, size: int, work: Any) -> Any:
            drop(path)
            started = time.perf_counter()
            found = work()
            rows.append(row(name, size, time.perf_counter() - started, anonymous()))
            return found

        stage("plain read", size, lambda: plain_read(path))
        stage("SHA-256", size, lambda: hash_bytes(size))
        limit = min(STEPS * BATCH * 10 // 9, size // int(np.prod(SHAPE)))
        spec = {"name": f"npy:{folder}", "in_memory": False, "limit": limit}
        data = stage("load", size, lambda: load(spec))
        net = nn.Sequential(
            nn.Conv2d(3, 8, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, CLASSES)
        )
        recipe = ss.Recipe(epochs=1, batch_size=BATCH, device="cpu")
        read = (len(data.train) // BATCH * BATCH + 2 * len(data.val)) * int(np.prod(SHAPE))
        stage("train and validate", read, lambda: ss.extract(net, data, "magnitude", density=0.5, recipe=recipe))
    return rows


def plain_read(path: Path) -> None:
    with open(path, "rb", buffering=0) as file:
        block = bytearray(CHUNK)
        while file.readinto(block):
            pass


def hash_bytes(size: int) -> None:
    block, hashed = os.urandom(CHUNK), hashlib.sha256()
    for _ in range(size // CHUNK):
        hashed.update(block)


def drop(path: Path) -> None:
    """Remove the pages of a file from the kernel's cache."""
    with open(path, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@contextmanager
def highest() -> Iterator[Any]:
    """The highest anonymous memory of this process so far, in bytes."""
    found, ended = [0], threading.Event()

    def look() -> None:
        while not ended.wait(0.02):
            found[0] = max(found[0], anonymous())

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    yield lambda: max(found[0], anonymous())
    ended.set()
    thread.join()


def anonymous() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=20.0)
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(inside(options.inside)))
    else:
        for found in measured(options.gigabytes):
            print("  ".join(f"{key} {value}" for key, value in found.items()), flush=True)
