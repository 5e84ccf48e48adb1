"""Orthogonal weights after pruning (OrthP), in runs: what becomes orthogonal, when, and what is recorded."""

import pytest
import torch
from torch import nn
from toys import conv_bn, mlp, pictures, points, run_config

from subnet_search import RunConfig
from subnet_search.core.errors import Interrupted, UserError
from subnet_search.core.search_domains import OneOf, domains
from subnet_search.evaluation.isometry import mean_singular_value
from subnet_search.extraction.config_file import check
from subnet_search.extractors import create, get_extractor
from subnet_search.structure.units_of_network import units_of

AFTER_TRAINING = ["magnitude", "l1_filters", "l2_filters", "fpgm", "hrank", "apoz", "taylor", "bn_scale"]
RANKED = AFTER_TRAINING[1:]


def settings(name, epochs=2, recipe=(), **hyperparameters):
    recipe = {"epochs": epochs, "batch_size": 32, "threads": 1, "device": "cpu", "lr": 0.05, **dict(recipe)}
    return check(
        RunConfig, {"extractor": {"name": name, **hyperparameters}, "recipe": recipe, "unit": "channel", "round_to": 1}
    )


def deep():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 24), nn.Identity(), nn.Linear(24, 24), nn.Identity(), nn.Linear(24, 3))


def kept_part(subnet, name):
    mask = subnet.masks[name].flatten(1)
    return subnet.weights[name].flatten(1)[mask.any(1)][:, mask.any(0)]


def test_a_linear_network_has_exactly_one_after_pruning():
    """Its layers keep 6, 6 and 3 rows: exact, as none is wider than the one before it."""
    data = points()
    found = {
        how: run_config(settings("l1_filters", 0, density=0.25, isometry=how), module=deep(), data=data)
        for how in ("none", "orthogonal")
    }
    values = {how: mean_singular_value(one.network(), [data.val.first(8)[0]]) for how, one in found.items()}
    assert values["orthogonal"] == pytest.approx(1, abs=1e-5)
    assert values["none"] < 0.5
    assert found["none"].masks.same(found["orthogonal"].masks)
    for name in found["orthogonal"].masks:
        part = kept_part(found["orthogonal"], name)
        torch.testing.assert_close(part @ part.T, torch.eye(len(part)), atol=1e-5, rtol=0)


def test_the_gain_is_the_singular_value():
    subnet = run_config(
        settings("l1_filters", 0, isometry="orthogonal", isometry_gain=1.414), module=conv_bn(), data=pictures()
    )
    part = kept_part(subnet, "0.weight")
    torch.testing.assert_close(part @ part.T, 1.414**2 * torch.eye(2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", AFTER_TRAINING)
def test_weights_become_orthogonal_once_and_are_trained_from_there(name):
    """The rate after pruning is so small that weights stay where they were put; the first layer's are orthogonal."""
    small = {"lr": 0.05, "schedule": "step", "milestones": [0.5], "gamma": 1e-7}
    options = {"density": 0.5, "start": 0.5, "isometry": "orthogonal"}
    subnet = run_config(settings(name, 2, small, **options), module=conv_bn(), data=pictures())
    part = kept_part(subnet, "0.weight")
    torch.testing.assert_close(part @ part.T, torch.eye(len(part)), atol=1e-4, rtol=0)
    assert 0 < len(part) < 4


@pytest.mark.parametrize(("name", "rounds"), [("magnitude", 2), ("taylor", 1), ("l1_filters", 2)])
def test_a_resumed_run_is_the_same(name, rounds, tmp_path):
    options = {"density": 0.5, "rounds": rounds, "start": 0.25, "isometry": "orthogonal"}
    given = settings(name, 3, {"record_isometry": True}, **options)
    whole = run_config(given, tmp_path / "whole", module=mlp(), data=points())
    for stop in (3, 7, 15):
        steps = []
        with pytest.raises(Interrupted):
            run_config(
                given,
                tmp_path / str(stop),
                module=mlp(),
                data=points(),
                on_step=steps.append,
                should_stop=lambda stop=stop, steps=steps: len(steps) == stop,
            )
        resumed = run_config(given, tmp_path / str(stop), module=mlp(), data=points(), resume=True)
        assert resumed.sha256 == whole.sha256
        assert resumed.metrics["isometry_at_pruning"] == whole.metrics["isometry_at_pruning"]
    assert len(whole.metrics["isometry_at_pruning"]) == rounds


def test_what_is_recorded_around_each_pruning():
    given = settings("l1_filters", 2, {"record_isometry": True}, density=0.25, start=0, isometry="orthogonal")
    (row,) = run_config(given, module=deep(), data=points()).metrics["isometry_at_pruning"]
    inputs = [points().val.first(128)[0]]
    pruned = run_config(settings("l1_filters", 0, density=0.25), module=deep(), data=points())
    assert row["step"] == 0
    assert row["density"] == pruned.density
    assert row["before"] == pytest.approx(mean_singular_value(deep(), inputs))
    assert row["pruned"] == pytest.approx(mean_singular_value(pruned.network(), inputs))
    assert row["after"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["magnitude", "lottery", "rigl", "gmp", "snip", "gumbel"])
def test_recording_changes_nothing(name):
    given = {"extractor": name, "recipe": {"epochs": 3, "batch_size": 20, "threads": 1, "device": "cpu", "lr": 0.05}}
    plain = run_config(check(RunConfig, given), module=mlp(), data=points())
    given["recipe"]["record_isometry"] = True
    recorded = run_config(check(RunConfig, given), module=mlp(), data=points())
    assert recorded.sha256 == plain.sha256
    assert "isometry_at_pruning" not in plain.metrics
    assert bool(recorded.metrics["isometry_at_pruning"]) == (name != "gumbel")  # which learns relevance


@pytest.mark.parametrize("unit", ["weight", "2:4", "block:4"])
def test_units_without_whole_rows_are_refused(unit):
    given = {"extractor": {"name": "magnitude", "isometry": "orthogonal"}, "unit": unit, "recipe": {"device": "cpu"}}
    with pytest.raises(
        UserError, match=r"magnitude\.isometry: weights can be made orthogonal where whole rows .*: use unit=channel"
    ):
        run_config(check(RunConfig, given), module=mlp(), data=points())


def test_studies_search_it_where_it_is_always_possible():
    for name in RANKED:
        assert domains(get_extractor(name))["isometry"] == OneOf("none", "orthogonal")
    assert "isometry" not in domains(get_extractor("magnitude"))  # its default unit is single weights
    assert units_of("channel", mlp(), (10,)).shapes  # with which magnitude takes it
    assert create({"name": "magnitude", "isometry": "orthogonal"}).isometry == "orthogonal"
