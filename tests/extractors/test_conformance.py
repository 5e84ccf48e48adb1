"""Every registered method passes the checks that ship with the package, and each check finds the fault that it is for."""

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import torch
from annotated_types import Ge

from subnet_search.extractors import extractor_names
from subnet_search.extractors.author import Change, Density, Extractor, Int, Masks, Paper, Paradigm, Published, magnitude
from subnet_search.extractors.methods.edge_popup import EdgePopup
from subnet_search.extractors.methods.iterand import IteRand
from subnet_search.testing import CHECKS, declarations, failures, problem, short_runs
from subnet_search.testing.__main__ import main
from subnet_search.testing.method import Method
from subnet_search.training import Supernet

EXAMPLES = Path(__file__).parents[2] / "examples"


QUICK = ("gumbel", "rigl", "snip", "sr_ste")
"""Of each kind one: for make test-short."""


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in extractor_names()]
)
def test_conformance(name):
    assert failures(name) == []


class Sound(Extractor):
    """The largest weights at first; each fault below is in a method derived from it."""

    paper = Paper("Nobody", 2020, "0000.00000", "A test", "top k of |w|")
    paradigm = Paradigm("before training", "trained", "fixed", True)
    published = Published.none("a method of the tests")

    density: Density = 0.4
    """Fraction kept."""

    def begin(self, net, clock, probe):
        return Change(net.units.keep(net.units.pool(magnitude(net.weights)), self.density))


class Unexplained(Sound):
    """A hyperparameter without help."""

    published = Sound.published
    strength: float = 1.0


class Incomplete(Sound):
    """A hyperparameter that has to be given."""

    published = Sound.published
    strength: float
    """Nothing."""


class Formless(Sound):
    """No formula."""

    published = Sound.published
    paper = Paper("Nobody", 2020, "0000.00000", "A test", "")


class Unpublished(Sound):
    """The settings of another class."""


class Overreaching(Sound):
    """A published length as a default."""

    published = Published("paper, section 4", {"lr": 0.1, "epochs": 160})


class Unseeded(Sound):
    """Random numbers that no seed decides."""

    def begin(self, net, clock, probe):
        return Change(net.units.keep({name: torch.rand(mask.shape) for name, mask in net.masks.items()}, self.density))


class Denser(Sound):
    """More than was asked for."""

    def begin(self, net, clock, probe):
        return Change(net.units.keep(net.units.pool(magnitude(net.weights)), min(1.0, self.density * 1.5)))


class InPlace(Sound):
    """Weights that are changed behind the loop's back, after the optimizer's step."""

    def step(self, net, clock):
        for weight in net.weights.values():
            weight.add_(1)


SEEN = {}


class Forgetful(Sound):
    """What a later step needs, kept where a new process does not find it."""

    def step(self, net, clock):
        if clock.step == 0:
            SEEN.update({name: clock.uniform(name, weight) for name, weight in net.weights.items()})
        return Change(net.units.keep(net.units.pool(SEEN), self.density)) if clock.step > 1 else None


class ByWeight(Sound):
    """Declares channels, and chooses weights."""

    paradigm = Paradigm("before training", "trained", "fixed", True, ("weight", "channel"))

    def begin(self, net, clock, probe):
        return Change(Masks({name: weight > 0 for name, weight in net.weights.items()}))


class Silent(IteRand):
    """Draws weights anew, and does not say so."""

    changes_weights = False


class Narrow(Sound):
    """A domain that goes too far."""

    parts: Annotated[int, Ge(0), Int(0, 4)] = 2
    """In how many parts."""

    def begin(self, net, clock, probe):
        return super().begin(net, clock, probe) if 1 / self.parts else None


class Upside(EdgePopup):
    """Keeps what matters least."""

    def finish(self, net):
        return net.units.keep({name: -relevance for name, relevance in net.relevance.items()}, self.density)


class Drawn(EdgePopup):
    """Another topology each time it is asked for the one to keep."""

    def finish(self, net):
        return net.units.keep({name: torch.rand(mask.shape) for name, mask in net.masks.items()}, self.density)


@pytest.mark.parametrize(
    ("cls", "check", "said"),
    [
        (Unexplained, declarations.describes_itself, "the hyperparameter strength has no help: write a docstring below it"),
        (Incomplete, declarations.describes_itself, "the hyperparameter strength has no default: give it one"),
        (Formless, declarations.describes_itself, "paper.formula is empty: state it"),
        (Unpublished, declarations.states_published_settings, "published is not declared: Published(source, recipe)"),
        (Overreaching, declarations.states_published_settings, "published.recipe sets epochs: only"),
        (Unseeded, short_runs.is_decided_by_the_seed, "two runs with the same seed differ: take random numbers from clock."),
        (Denser, short_runs.meets_its_density, "asked for 0.05 it keeps 0.07"),
        (InPlace, short_runs.keeps_dead_weights_at_zero, "dead weights of 0.weight are not zero: change weights by Change("),
        (Drawn, short_runs.leaves_test_data_alone, "that of the subnetwork"),
        (Forgetful, short_runs.goes_on_after_a_stop, "and resumed, it is another subnetwork: keep what later steps need in"),
        (ByWeight, short_runs.supports_its_units, "leave the unit out of paradigm.units"),
        (Silent, short_runs.is_stored_as_asked, "declare changes_weights = True"),
        (Narrow, short_runs.runs_at_every_bound, "with parts=0: ZeroDivisionError: division by zero (test_conformance, line "),
        (Upside, short_runs.finds_a_planted_subnetwork, "it does not learn, is the sign of its scores right?"),
    ],
)
def test_a_fault_is_one_line_that_says_what_to_change(cls, check, said, tmp_path):
    found = problem(check, Method(cls.name, tmp_path))
    assert said in found
    assert "\n" not in found


def test_optimizer_state_of_dead_weights_is_looked_at(tmp_path, monkeypatch):
    """A loop that masks weights after a change, and forgets their momentum."""

    @torch.no_grad()
    def forgets(supernet, optimizer):
        for name, weight in supernet.weights.items():
            weight.mul_(supernet.gates[name])

    monkeypatch.setattr(Supernet, "mask_weights", forgets)
    found = problem(short_runs.keeps_dead_weights_at_zero, Method("set", tmp_path))
    assert "of dead weights of" in found


@pytest.mark.slow
def test_a_method_of_a_users_file_from_the_command_line():
    words = [sys.executable, "-m", "subnet_search.testing", "largest:Largest"]
    done = subprocess.run(words, cwd=EXAMPLES, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    *lines, verdict = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["ok"] * len(CHECKS)
    assert verdict == f"largest:Largest passes all {len(CHECKS)} checks"


def test_a_check_that_fails_is_the_exit_code(capsys, monkeypatch):
    monkeypatch.setattr("subnet_search.testing.CHECKS", [declarations.describes_itself, declarations.comes_back_from_yaml])
    assert main(["test_conformance:Formless"]) == 1
    failed, passed, verdict = capsys.readouterr().out.splitlines()
    assert failed.startswith("FAILED  States its paper, formula, paradigm, units and hyperparameters: paper.formula is empty")
    assert passed.startswith("ok      ")
    assert verdict == "test_conformance:Formless fails 1 of 2 checks"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rigll", "error: unknown extractor 'rigll': did you mean 'rigl'"),
        ("test_conformance:Largst", "error: cannot import the extractor 'test_conformance:Largst'"),
        (
            "test_conformance:main",
            "error: test_conformance:main is a function, not a class derived from subnet_search.Extractor",
        ),
    ],
)
def test_a_name_that_is_none_is_one_line(name, said, capsys):
    assert main([name]) == 2
    told = capsys.readouterr()
    assert told.err.startswith(said)
    assert (told.out, told.err.count("\n")) == ("", 1)


def test_help_says_what_a_name_is(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["--help"])
    assert not stopped.value.code
    assert "package.module:Class" in capsys.readouterr().out
