"""Units as a configuration asks for them: what it refuses, what targets come to, and what is taken out in the end."""

import pytest
import torch
from torchvision.models import VisionTransformer
from toys import run_config

from subnet_search import RunConfig, UserError
from subnet_search.evaluation import cost, layer_macs
from subnet_search.extraction.config_file import check, read_config
from subnet_search.nets import build, prunable
from subnet_search.nets.spec import NetworkSpec
from subnet_search.structure.compact import compact
from subnet_search.structure.units_of_network import units_of
from subnet_search.topology.masks import Masks


def config(**values):
    recipe = {"epochs": 2, "batch_size": 50, "threads": 1, "device": "cpu", "lr": 0.05}
    data = {"name": "digits", "limit": 200}
    return check(RunConfig, {"network": "small_conv", "data": data, "extractor": "gmp", "recipe": recipe, **values})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"unit": "filter"}, "a unit is weight, channel, n:m such as 2:4, or block:size such as block:16, got 'filter'"),
        ({"unit": "channel", "extractor": "cht"}, "cht does not support 'channel', only weight"),
        ({"round_to": 8}, "round_to: needs unit: channel, got unit: weight"),
        ({"target": {"flops": 0.5, "parameters": 0.5}}, "at most 1 item"),
        ({"target": {"macs": 0.5}}, "target"),
        ({"target": {"flops": 1.5}}, "less than or equal to 1"),
        (
            {"target": {"flops": 0.5}, "extractor": {"name": "gmp", "density": 0.3}},
            r"extractor\.density and target both set the density: remove one of them",
        ),
    ],
)
def test_what_does_not_go_together(values, said):
    with pytest.raises(UserError, match=said):
        config(**values)


@pytest.mark.parametrize("unit", ["2:4", "1:4", "4:8", "1:16", "3:32"])
def test_n_of_m_needs_no_quotes_in_yaml(unit, tmp_path):
    (tmp_path / "run.yaml").write_text(f"extractor: gmp\nunit: {unit}\n")
    assert read_config(RunConfig, tmp_path / "run.yaml").unit == unit
    assert read_config(RunConfig, None, ["extractor=gmp", f"unit={unit}"]).unit == unit


def test_a_target_is_the_density_that_the_method_goes_for():
    assert config(target={"flops": 0.3}).extractor.density == 0.3
    again = check(RunConfig, config(target={"flops": 0.3}).resolve().dump())
    assert again.target == {"flops": 0.3}


@pytest.mark.parametrize("measure", ["units", "parameters", "flops"])
@pytest.mark.parametrize("unit", ["weight", "channel", "2:4", "block:4"])
@pytest.mark.parametrize("scope", ["global", "uniform"])
def test_a_target_is_met_within_one_unit(unit, measure, scope):
    net = build(NetworkSpec(name="small_conv").resolve(None), (1, 28, 28), 10, 0)
    units = units_of(unit, net, (1, 28, 28), measure=measure, round_to=2 if unit == "channel" else None)
    scores = units.pool_magnitude(prunable(net))
    scores = {name: score.detach().abs() for name, score in scores.items()}
    for target in (0.5, 0.23):
        masks = units.keep(scores, target, scope)
        assert abs(units.cost(masks) - target) <= units.coarseness + 1e-9
        counted = cost(net, Masks(units.expand(masks)), (1, 28, 28))
        if measure == "flops":
            assert counted.kept_macs / counted.macs == pytest.approx(units.cost(masks), abs=1e-4)
        if measure == "parameters":
            assert counted.kept / counted.weights == pytest.approx(units.cost(masks), abs=1e-6)


@pytest.mark.parametrize("method", ["gmp", "granet", "gumbel", "synflow"])
def test_half_of_the_operations_are_really_gone(method):
    """A run to a target in FLOPs; the network without the channels does that many, and says the same."""
    rounds = {"rounds": 5} if method == "synflow" else {}
    subnet = run_config(config(unit="channel", round_to=1, target={"flops": 0.5}, extractor={"name": method, **rounds}))
    assert subnet.metrics["kept_macs"] / subnet.metrics["macs"] == pytest.approx(0.5, abs=0.03)
    masked, example = subnet.network(), torch.randn(2, *subnet.origin.shape)
    small = compact(masked, example)
    everything = Masks.ones(prunable(small))
    left = cost(small, everything, subnet.origin.shape).macs / subnet.metrics["kept_macs"]
    if method == "granet":  # what has grown in the last change is read by weights that are still zero
        assert 0.9 < left <= 1
    else:
        assert left == 1


def test_a_target_that_would_empty_a_layer():
    with pytest.raises(UserError, match=r"density 0.01 would empty a layer: the minimum with some channels in each layer is"):
        run_config(config(unit="channel", target={"flops": 0.01}))


def test_a_density_that_the_pattern_does_not_have():
    with pytest.raises(UserError, match=r"2:4 keeps at most 0\.503212 of the weights of this network: not 0\.7"):
        run_config(config(unit="2:4", extractor={"name": "gmp", "density": 0.7}))


def test_attention_is_counted():
    """17 tokens of width 16 for one input: 48 outputs of 16 inputs, then 16 of 16."""
    net = VisionTransformer(image_size=32, patch_size=8, num_layers=1, num_heads=4, hidden_dim=16, mlp_dim=32, num_classes=5)
    shapes = {name: tuple(weight.shape) for name, weight in prunable(net).items()}
    macs = {name.rpartition("encoder_layer_0.")[2]: count for name, count in layer_macs(net, shapes, (3, 32, 32)).items()}
    assert macs["self_attention.in_proj_weight"] == 17 * 48 * 16
    assert macs["self_attention.out_proj.weight"] == 17 * 16 * 16
    assert macs["mlp.0.weight"] == 17 * 32 * 16
