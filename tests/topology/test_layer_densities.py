"""A relative density for every layer: what `allocation` and `scope` take besides a rule, in every method that has one."""

import pytest
import torch
from torch import nn
from toys import points, run_config

from subnet_search import RunConfig
from subnet_search.core.errors import UserError
from subnet_search.core.search_domains import domains
from subnet_search.extraction.config_file import check
from subnet_search.extractors import extractor_names, get_extractor
from subnet_search.extractors.base import layer_field
from subnet_search.topology.select import count

WEIGHTS = [name for name in extractor_names() if "weight" in get_extractor(name).paradigm.units]
METHODS = [name for name in WEIGHTS if layer_field(get_extractor(name))]
VARIANTS = [
    {"name": "cht", "initial_density": 0.5},
    {"name": "granet", "initial_density": 0.5},
    {"name": "gumbel", "reach": "penalty"},
    {"name": "snip_iterative", "revive": True},
]


def net():
    """Three layers of 240, 384 and 48 weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(10, 24), nn.ReLU(), nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 3))


def config(method, shares, **hyperparameters):
    spec = {"name": method} if isinstance(method, str) else method
    field = layer_field(get_extractor(spec["name"]))
    recipe = {"epochs": 4, "batch_size": 30, "threads": 1, "device": "cpu"}
    return check(RunConfig, {"extractor": {**spec, "density": 0.2, field: shares, **hyperparameters}, "recipe": recipe})


def found(method, shares, **hyperparameters):
    return run_config(config(method, shares, **hyperparameters), module=net(), data=points(400))


@pytest.mark.parametrize("method", [*METHODS, *VARIANTS], ids=str)
@pytest.mark.parametrize(
    ("shares", "kept"),
    [
        # 134 of 672 = e (240 * 1 + 384 * 0.5 + 48 * 3) = 576 e: 55.8, 44.7 and 33.5
        ({"0": 1, "2": 0.5, "4": 3}, [56, 45, 33]),
        # = 1584 e: 81 of 48, so the last layer is dense, and 86 are left = 624 e: 33.1 and 52.9
        ({"0": 1, "2": 1, "4": 20}, [33, 53, 48]),
        # = 2904 e: 0.2 of the 48, but one lives
        ({"0": 0.1, "2": 7.5, "4": 0.005}, [1, 132, 1]),
    ],
)
def test_layers_have_the_ratio_that_is_asked_for(method, shares, kept):
    masks = found(method, shares).masks
    assert masks.kept == count(0.2, masks.numel) == 134
    assert [int(mask.sum()) for mask in masks.values()] == kept


@pytest.mark.parametrize("method", [*METHODS, *VARIANTS], ids=str)
def test_equal_numbers_are_the_rule_uniform(method):
    assert found(method, {"0": 2, "2": 2, "4": 2}).sha256 == found(method, "uniform").sha256


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"0": 1, "2": 1, "4": 1, "40": 1}, "unknown layer '40': did you mean '4' or '0'? valid: 0, 2, 4"),
        ({"0": 1, "4": 1}, "every layer needs a relative density, and there is none for 2"),
    ],
)
def test_other_layers_are_refused_before_the_first_step(name, shares, message, tmp_path):
    steps = []
    with pytest.raises(UserError) as caught:
        run_config(config(name, shares), tmp_path / "run", module=net(), data=points(400), on_step=steps.append)
    assert str(caught.value) == message
    assert steps == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", METHODS)
def test_fewer_weights_than_layers_are_refused(name):
    with pytest.raises(UserError, match=r"^density 0\.003 keeps 2 of 672 weights, fewer than the network's 3 layers$"):
        found(name, {"0": 1, "2": 1, "4": 1}, density=0.003)


@pytest.mark.parametrize(
    ("name", "shares", "message"),
    [
        ("rigl", {"0": 0}, "extractor.allocation: the relative density of layer 0 must be above 0, got 0"),
        ("snip", {"fc": -1.5}, "extractor.scope: the relative density of layer fc must be above 0, got -1.5"),
        ("snip", {"fc": float("nan")}, "extractor.scope: the relative density of layer fc must be above 0, got nan"),
        ("snip", {"fc": float("inf")}, "extractor.scope: the relative density of layer fc must be above 0, got inf"),
        ("snip", {"fc": "much"}, "extractor.scope: the relative density of layer fc must be above 0, got 'much'"),
        ("snip", {"fc": [1]}, "extractor.scope: the relative density of layer fc must be above 0, got [1]"),
        ("snip", {"fc": 1, "fc.weight": 1}, "extractor.scope: a layer is named twice: fc, fc.weight"),
        (
            "edge_popup",
            "erks",
            "extractor.allocation: input should be 'uniform', 'er' or 'erk', or relative densities by layer, got 'erks'",
        ),
        (
            "gmp",
            3,
            "extractor.scope: input should be 'global', 'uniform' or 'erk', or relative densities by layer, got 3",
        ),
    ],
)
def test_a_wrong_value_is_one_line(name, shares, message):
    with pytest.raises(UserError) as caught:
        config(name, shares)
    assert str(caught.value) == message


@pytest.mark.parametrize("name", ["gumbel", "supermask", "continuous_sparsification"])
@pytest.mark.parametrize("shares", ["uniform", {"0": 1, "2": 1, "4": 1}])
def test_without_a_density_there_is_none_to_share(name, shares):
    with pytest.raises(UserError, match=r"^extractor\.scope: without a density there is none to share .*: set density too$"):
        config(name, shares, density=None)
    assert config(name, "global", density=None).extractor.scope == "global"


@pytest.mark.parametrize("name", METHODS)
def test_layers_may_be_spelled_as_parameters_and_numbers(name):
    plain = config(name, {"0": 1, "2": 0.5, "4": 3})
    assert config(name, {"0.weight": 1, 2: "5e-1", 4: 3.0}) == plain
    assert plain.dump()["extractor"][layer_field(get_extractor(name))] == {"0": 1.0, "2": 0.5, "4": 3.0}
    assert check(RunConfig, plain.dump()).dump() == plain.dump()


def test_a_control_takes_its_source_with_shares():
    source = {"name": "snip", "density": 0.2, "scope": {"0": 1, "2": 0.5, "4": 3}}
    masks = run_config(
        check(RunConfig, {"extractor": {"name": "shuffled", "source": source}, "recipe": {"epochs": 0, "threads": 1}}),
        module=net(),
        data=points(400),
    ).masks
    assert [int(mask.sum()) for mask in masks.values()] == [56, 45, 33]


def test_which_hyperparameter_takes_them():
    assert layer_field(get_extractor("rigl")) == "allocation"
    assert layer_field(get_extractor("magnitude")) == "scope"
    assert layer_field(get_extractor("concrete")) is None
    assert layer_field(get_extractor("shuffled")) is None


@pytest.mark.parametrize("name", ["snip", "synflow", "gumbel", "granet", "edge_popup"])
def test_where_the_papers_have_one_rule_a_study_keeps_to_it(name):
    cls = get_extractor(name)
    assert cls.model_fields[layer_field(cls)].default == ("uniform" if name == "edge_popup" else "global")
    assert layer_field(cls) not in domains(cls)
    assert layer_field(get_extractor("gmp")) in domains(get_extractor("gmp"))
