"""Shared field types: what a method takes over from one, and what `Extractor.check` refuses by its marks."""

from typing import Annotated

import pytest
import torch

from subnet_search.core.errors import UserError
from subnet_search.core.search_domains import domains
from subnet_search.extractors import author as ss
from subnet_search.extractors.describe import _hyperparameters
from subnet_search.topology.masks import Masks


class Declared(ss.Extractor):
    """A method of nothing but declarations."""

    density: ss.Density = 0.5
    small: Annotated[ss.Density, ss.Real(0.2, 0.4)] = 0.3
    """Its own words."""
    start: ss.Span = 0.2
    end: Annotated[ss.Span, ss.PhaseEnd("start")] = 0.5
    until: Annotated[ss.Until, ss.PhaseEnd(3)] = 0.9
    every: ss.Every = 10
    scope: ss.Scope = "global"


class Bare(ss.Extractor):
    """A method without a density, whose phase ends in the middle of the run."""

    until: ss.Until = 0.5


def test_help_and_domain_come_from_the_type_unless_the_method_has_its_own():
    rows = {row["name"]: row for row in _hyperparameters(Declared)}
    assert rows["density"]["help"] == "Fraction of prunable weights kept; with units of several weights, of the units."
    assert rows["small"]["help"] == "Its own words."
    assert [str(domains(Declared)[name]) for name in ("density", "small")] == ["0.01 to 0.5, log", "0.2 to 0.4"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"end": 101}, r"\.end: step 101 is after the end of the run of 100 steps"),
        ({"start": 60}, r"\.end: step 50 is before the start, step 60"),
        ({"until": 2}, r"\.until: step 2 is before the start, step 3"),
        ({"every": 100}, r"\.every: an interval of 100 steps is longer than the run of 100"),
        ({"density": 0.1, "scope": "uniform"}, "keeps 1 of 8 weights, fewer than the network's 2 layers"),
    ],
)
def test_a_run_that_cannot_be_is_refused_by_what_is_declared(settings, message):
    units, clock = ss.Units({"a": (2, 2), "b": (2, 2)}), ss.Clock(0, 100, 0)
    Declared().check(units, clock)
    with pytest.raises(UserError, match=message):
        Declared(**settings).check(units, clock)


def test_a_method_reaches_its_density_or_the_end_of_its_phases():
    masks = Masks({"a": torch.tensor([True, True, *[False] * 6])})  # 2 of 8
    net = type("Net", (), {"units": ss.Units({"a": (8,)})})()
    found = [Declared(density=density).reached(net, masks, ss.Clock(0, 100, 0)) for density in (0.125, 0.25, 0.5)]
    assert found == [False, True, True]
    assert (Declared(density=0.5).target_density, Bare().target_density) == (0.5, None)
    assert next(step for step in range(100) if Bare().reached(net, masks, ss.Clock(step, 100, 0))) == 50
