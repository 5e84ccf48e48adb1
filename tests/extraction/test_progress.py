"""Progress of runs and studies from Python: in a terminal or a notebook, where it is asked for, and nowhere else."""

import importlib.util
import io
import sys

import pytest
import torch
from rich.console import Console
from torch import nn

import subnet_search as ss
from subnet_search.extraction import progress
from subnet_search.extraction.config_file import check
from subnet_search.extraction.progress import Screen, both


class Terminal(io.StringIO):
    def isatty(self):
        return True


def extracted(**options):
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    recipe = ss.Recipe(epochs=3, device="cpu", threads=1)
    data = torch.randn(120, 8), torch.arange(120) % 2
    return ss.extract(net, data, "magnitude", density=0.25, recipe=recipe, **options)


@pytest.mark.parametrize("wanted", [None, False])
def test_silent_where_standard_error_is_no_terminal(wanted, capfd):
    extracted(progress=wanted)
    assert capfd.readouterr() == ("", "")


def test_plain_lines_where_they_are_asked_for(capsys):
    extracted(progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    lines = err.splitlines()
    assert [line.split("  ")[0] for line in lines] == ["epoch 1", "epoch 3"]  # the others within ten seconds
    assert lines[-1].endswith("density 0.250  trained; measuring the result")


@pytest.mark.parametrize(("wanted", "shown"), [(None, True), (True, True), (False, False)])
def test_a_bar_in_a_terminal(wanted, shown, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    extracted(progress=wanted)
    assert ("steps" in sys.stderr.getvalue()) == shown


@pytest.mark.parametrize("widgets", [True, False])
def test_a_notebook_has_a_bar_if_its_widgets_are_installed_and_else_lines(widgets, monkeypatch):
    class Notebook(Console):
        def __init__(self, **options):
            super().__init__(force_jupyter=True, **options)

    monkeypatch.setattr(progress, "Console", Notebook)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if widgets else None)
    screen = Screen(None)
    assert (screen.live, screen.plain) == (widgets, not widgets)
    assert not Screen(False).live


def test_the_progress_does_not_replace_the_callers_functions():
    seen = []
    both(None, seen.append, lambda value: seen.append(-value))(3)
    assert seen == [3, -3]


@pytest.mark.parametrize(("wanted", "count"), [(None, 0), (True, 2)])
def test_a_study(wanted, count, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {
        "name": "two",
        "run": {"network": "lenet_300_100", "extractor": "random", "recipe": {"epochs": 0, "device": "cpu"}},
        "space": {"extractor.density": {"choice": [0.1, 0.2]}},
        "trials": 2,
        "sampler": "random",
        "storage": f"sqlite:///{tmp_path / 'study.db'}",
    }
    ss.run_study(check(ss.StudySpec, settings), progress=wanted)
    assert capsys.readouterr().err.count("complete: validation") == count
