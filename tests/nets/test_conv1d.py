"""The Conv1D of transformers, as in GPT-2: a linear layer whose weight is stored as (inputs, outputs)."""

import pytest
import torch
from torch import nn

import subnet_search as ss
from subnet_search.nets import initial_weight, initialise, inputs_first
from subnet_search.structure.units_of_network import units_of, watched
from subnet_search.topology.rescale import fan_in

transformers = pytest.importorskip("transformers")
RECIPE = ss.Recipe(epochs=1, batch_size=16, threads=1, device="cpu")
WORDS = torch.randint(3, 20, (40, 6), generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
HIDDEN = "transformer.h.0.mlp.c_fc.weight"  # (8, 32)


def gpt2(activation="relu"):
    torch.manual_seed(0)
    sizes = {"vocab_size": 20, "n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 2, "num_labels": 2}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = transformers.GPT2Config(**sizes, **tokens, activation_function=activation)
    return transformers.GPT2ForSequenceClassification(config)


def extracted(method, **settings):
    return ss.extract(gpt2(), WORDS, method, recipe=RECIPE, progress=False, **settings)


def test_only_its_weights_are_stored_by_inputs():
    layers = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    assert inputs_first(gpt2()) == {f"transformer.h.0.{layer}.weight" for layer in layers}
    assert inputs_first(nn.Sequential(nn.Linear(2, 3), nn.Conv1d(3, 4, 1), nn.ConvTranspose1d(3, 4, 1))) == set()


@pytest.mark.parametrize("method", ["magnitude", "sr_ste", "edge_popup"])
def test_n_of_m_is_along_the_inputs(method):
    mask = extracted(method, unit="2:4").masks[HIDDEN]
    assert mask.T.reshape(32, 2, 4).sum(2).le(2).all()
    assert not mask.reshape(8, 8, 4).sum(2).le(2).all()  # not along the outputs


def test_the_densest_n_of_m_is_counted_along_the_inputs():
    class Short(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = transformers.pytorch_utils.Conv1D(8, 3)  # 8 outputs, 3 inputs: a group of 3, of which 2 are kept

        def forward(self, x):
            return self.layer(x)

    units = units_of("2:4", Short(), (3,))
    units.check(2 / 3)
    with pytest.raises(ss.UserError, match="at most"):
        units.check(0.7)


def test_initial_weights_have_the_fan_in_of_the_layer():
    net = gpt2()
    initialise(net, "signed_constant", 0)
    weight = dict(net.named_parameters())[HIDDEN]
    assert torch.equal(weight.abs(), torch.full((8, 32), (2 / 8) ** 0.5))
    assert torch.equal(weight, initial_weight(HIDDEN, (32, 8), "signed_constant", 0).T)


def test_a_file_with_a_seed_has_the_same_weights(tmp_path):
    found = extracted("gumbel", density=0.3, init="kaiming_normal", rescale="fan_in")
    found.save(tmp_path / "seed.safetensors", weights="seed")
    assert ss.Subnetwork.load(tmp_path / "seed.safetensors").sha256 == found.sha256
    kept = found.masks[HIDDEN].sum(0).clamp(min=1)  # of each output
    torch.testing.assert_close(found.scales[HIDDEN], (8 / kept).sqrt()[None])
    assert torch.equal(found.scales["score.weight"], fan_in(found.masks["score.weight"].float()))


def test_learned_scores_begin_in_the_range_of_the_fan_in():
    from subnet_search.extractors import create
    from subnet_search.training import Supernet

    supernet = Supernet(gpt2(), create("edge_popup"), RECIPE.resolve({}), seed=0)
    largest = supernet.relevance[HIDDEN].abs().max()
    assert 32**-0.5 < largest <= 8**-0.5


def test_activations_of_channels_are_those_of_the_last_dimension():
    net, words = gpt2(), WORDS[0][:3]
    units, features, hidden = units_of("channel", net, (6,), example=words), {}, []
    net.transformer.h[0].mlp.act.register_forward_hook(lambda *found: hidden.append(found[2]))
    with watched(net, units, features):
        net.eval()(words)
    assert torch.equal(features[HIDDEN], hidden[0].mT)


@pytest.mark.parametrize("method", ["magnitude", "apoz"])
def test_channels_are_columns_and_are_removed(method):
    found = extracted(method, unit="channel", density=0.5, round_to=1)
    mask, small = found.masks[HIDDEN], found.compact()
    assert torch.equal(mask.any(0), mask.all(0))
    assert small.transformer.h[0].mlp.c_fc.weight.shape == (8, int(mask.any(0).sum()))
    assert small.transformer.h[0].mlp.c_proj.weight.shape == (int(mask.any(0).sum()), 8)
