"""A method under test, with the networks, data and configurations of the small runs that it is tested by."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from subnet_search.artifact import Subnetwork
from subnet_search.core.errors import UserError, line_of, reason
from subnet_search.data import Data
from subnet_search.extraction.config import DEFAULT_UNITS, RunConfig
from subnet_search.extraction.config_file import check
from subnet_search.extraction.extract import run
from subnet_search.extraction.session import make_network
from subnet_search.extractors import get_extractor
from subnet_search.tasks import Classification
from subnet_search.testing.toys import conv_bn, mlp, pictures, points
from subnet_search.topology.masks import Masks
from subnet_search.topology.units import Units, parse

UNITS = ("weight", "channel", "2:4", "block:2")


class Failed(AssertionError):
    """A check that a method fails. The message is one line: what was found, and what to change."""


class Method:
    """A method by its name, and a folder for its runs. Raises UserError for a name that is none."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.cls = get_extractor(name)
        self.has_density = self.cls.has_density()
        self.half: dict[str, Any] = {"density": 0.5} if self.has_density else {}

    @property
    def unit(self) -> str:
        """What it is tested with: single weights, or the first unit that it supports instead."""
        first = self.cls.paradigm.units[0]
        if first not in DEFAULT_UNITS:
            raise Failed(f"paradigm.units has {first!r}, which is none of {', '.join(DEFAULT_UNITS)}")
        return DEFAULT_UNITS[first]

    @property
    def units(self) -> list[str]:
        """A unit of each kind that it supports."""
        supported = [unit for unit in UNITS if parse(unit)[0] in self.cls.paradigm.units]
        return list(dict.fromkeys([self.unit, *supported]))

    def reason(self, error: Exception) -> str:
        """What an error says, with the line of the method's own module that it came from."""
        return reason(error) + line_of(error, self.cls.__module__)

    @contextmanager
    def explained(self, where: str, advice: str) -> Iterator[None]:
        """Around runs that must not fail: any error is a failed check, which says where, and what to change."""
        try:
            yield
        except Failed:
            raise
        except Exception as error:
            raise Failed(f"{where}: {self.reason(error)}; {advice}") from error

    def config(
        self, epochs: int = 2, *, seed: int = 3, unit: str = "", recipe: dict[str, Any] | None = None, **hyperparameters: Any
    ) -> RunConfig:
        """The configuration of a short run."""
        unit = unit or self.unit
        return check(
            RunConfig,
            {
                "extractor": {"name": self.name, **hyperparameters},
                "recipe": {"epochs": epochs, "batch_size": 32, "threads": 1, "device": "cpu", **(recipe or {})},
                "seed": seed,
                "unit": unit,
                "round_to": 1 if unit == "channel" else None,
            },
        )

    def train(self, config: RunConfig, **options: Any) -> Subnetwork:
        """Run a configuration on points, or on what the options (those of `extraction.extract.run`) say."""
        return run(config, **{"module": self.network(), "data": points(400), "progress": False, **options})

    def network(self, net: nn.Sequential | None = None) -> nn.Module:
        """An MLP; for methods of channels, some of which look at its scales, with a batch norm behind the hidden layer.

        For dynamic methods a convolution of as many filters.
        """
        net = net or mlp()
        first, last = net[0], net[2]
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        inputs, hidden, classes = first.in_features, first.out_features, last.out_features
        if self.cls.dynamic:
            with torch.random.fork_rng():
                torch.manual_seed(0)
                layers = nn.Conv1d(1, hidden, 3, padding=1), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Flatten()
                return nn.Sequential(nn.Unflatten(1, (1, inputs)), *layers, nn.Linear(inputs * hidden, classes))
        return nn.Sequential(first, nn.BatchNorm1d(hidden), *net[1:]) if self.unit == "channel" else net

    def begun(self, net: nn.Module, data: Data) -> nn.Module:
        """The network as a run begins with it: that of a dynamic method has gates."""
        return make_network(self.config(**self.half), net, "keep", data, Classification())[0]

    def with_density(self, *values: float) -> list[float]:
        """Those of the densities that it can be asked for; none where density is its outcome."""
        found = []
        for density in values if self.has_density else ():
            try:
                self.config(density=density)
            except UserError:
                continue
            if density <= 0.5 or self.unit != "2:4":
                found.append(density)
        return found


def conv_and_pictures() -> tuple[nn.Module, Data]:
    """The convolution that units of every kind are tried on, with the same first weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return conv_bn(), pictures()


def topology(units: Units, subnet: Subnetwork) -> Masks:
    """The units that live in a subnetwork."""
    pooled = units.pool({name: mask.float() for name, mask in subnet.masks.items()})
    return Masks({key: values > 0 for key, values in pooled.items()})
