"""What every test may count on: one thread, and a test-only extractor that changes its topology as it goes."""

import os
import shutil
from pathlib import Path
from typing import Annotated

import pytest
import torch

from subnet_search.core.search_domains import Int, Real
from subnet_search.extractors import Clock, Extractor, Paper, Paradigm, Published, register
from subnet_search.extractors.author import Change, Density, Network, Probe
from subnet_search.topology.masks import Masks
from subnet_search.topology.select import count, keep_global

os.environ.setdefault("OMP_NUM_THREADS", "1")  # what a run has by default: the tests use all processors together


MEMORY = Path("/dev/shm")
"""Where Linux keeps files in memory."""


def pytest_configure():
    """Keep the files of the tests in memory where there is room: on a disk, studies wait for every commit."""
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > 4 * 2**30:
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", str(MEMORY))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Sums depend on the number of threads, and small tensors are fastest on one."""
    torch.set_num_threads(1)


@register("redraw")
class Redraw(Extractor):
    """Draw a new random topology every few steps."""

    paper = Paper("Nobody", 2020, "0000.00000", "A test", "mask ~ U")
    paradigm = Paradigm("random, during training", "trained", "fixed", False)
    published = Published.none("a method of the tests")

    density: Annotated[Density, Real(0.05, 0.5)] = 0.4
    """Fraction kept."""
    every: Annotated[int, Int(1, 10)] = 3
    """Steps between changes."""

    def begin(self, net: Network, clock: Clock, probe: Probe) -> Change:
        return Change(self.draw(net, clock))

    def draw(self, net: Network, clock: Clock) -> Masks:
        scores = {name: clock.uniform(name, weight) for name, weight in net.weights.items()}
        return keep_global(scores, count(self.density, sum(s.numel() for s in scores.values())))

    def step(self, net: Network, clock: Clock) -> Change | None:
        due = clock.step % self.every == self.every - 1 and clock.progress < 0.5
        return Change(self.draw(net, clock)) if due else None


Redraw.name = "redraw"  # no other process has to find it
