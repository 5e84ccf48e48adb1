"""What counts: recurrent weights are pruned, what is not pruned is named with its share and is part of every total."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from toys import mlp, pictures, points, supernet

import subnet_search as ss
from subnet_search import RunConfig, UserError
from subnet_search.cli.render import format
from subnet_search.data import from_user
from subnet_search.evaluation import cost, layer_macs
from subnet_search.extraction.config_file import check
from subnet_search.extractors import Clock, extractor_names, get_extractor
from subnet_search.extractors.base import trains_weights
from subnet_search.nets import prunable
from subnet_search.search.spec.metrics import before_training, measure
from subnet_search.structure.units_of_network import units_of
from subnet_search.topology.masks import Masks

RECIPE = ss.Recipe(epochs=4, batch_size=32, lr=0.02, threads=1, device="cpu")


class Recurrent(nn.Module):
    def __init__(self, layer=None, outputs=32):
        super().__init__()
        self.rnn, self.out = layer or nn.LSTM(4, 32, batch_first=True), nn.Linear(outputs, 2)

    def forward(self, x):
        return self.out(self.rnn(x)[0][:, -1])


class Cell(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.out = nn.GRUCell(4, 8), nn.Linear(8, 2)

    def forward(self, x):
        state = x.new_zeros(len(x), 8)
        for step in range(x.shape[1]):
            state = self.cell(x[:, step], state)
        return self.out(state)


class Tokens(nn.Module):
    """An embedding of 20 tokens, positions, a linear layer; with a matrix of its own."""

    def __init__(self):
        super().__init__()
        self.embed, self.out = nn.Embedding(20, 8), nn.Linear(8, 2)
        self.positions, self.mix = nn.Parameter(torch.zeros(1, 5, 8)), nn.Parameter(torch.eye(8))

    def forward(self, x):
        return self.out(((self.embed(x.long()) + self.positions) @ self.mix).mean(1))


def sequences(count=120):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(count, 5, 4, generator=rng)
    return from_user((x, (x.mean((1, 2)) > 0).long()))


def tokens(count=120):
    x = torch.randint(0, 20, (count, 5), generator=torch.Generator().manual_seed(0))
    return from_user((x, (x[:, 0] > 9).long()))


def half_frozen():
    net = mlp(hidden=16)
    net[0].requires_grad_(False)
    return net


def counted(net, shape):
    return cost(net, Masks.ones(prunable(net)), shape)


# --- recurrent layers ---


@pytest.mark.parametrize(
    ("net", "macs"),
    [
        (Recurrent(), 5 * 4 * 32 * (4 + 32) + 64),
        (Recurrent(nn.GRU(4, 16, num_layers=2, bidirectional=True, batch_first=True)), None),
        (Recurrent(nn.LSTM(4, 16, proj_size=6, batch_first=True), 6), 5 * (4 * 16 * (4 + 6) + 6 * 16) + 12),
        (Cell(), 5 * 3 * 8 * (4 + 8) + 16),
    ],
    ids=["LSTM", "two layers, two ways", "projected", "cell"],
)
def test_recurrent_weights_are_counted_at_every_step(net, macs):
    layers = 5 * 2 * 3 * 16 * ((4 + 16) + (32 + 16)) + 64
    assert counted(net, (5, 4)).macs == (layers if macs is None else macs)


def test_an_lstm_is_pruned():
    torch.manual_seed(0)
    subnet = ss.extract(Recurrent(), sequences(), "magnitude", density=0.1, recipe=RECIPE)
    record = subnet.summary()
    assert list(subnet.masks) == ["rnn.weight_ih_l0", "rnn.weight_hh_l0", "out.weight"]
    assert record["weights"] == 4672
    assert record["macs"] == 23104
    assert record["kept_macs"] < 0.2 * 23104
    assert record["left_whole"] == []
    assert all(not weight[~subnet.masks[name]].any() for name, weight in subnet.weights.items())


def test_relevance_of_recurrent_weights_is_learned():
    torch.manual_seed(0)
    net = supernet("gumbel", Recurrent())
    data = sequences()
    loss = F.cross_entropy(net.forward(data.train.inputs, Clock(0, 10, 0)), data.train.labels)
    loss.backward()
    assert all(relevance.grad.abs().sum() > 0 for relevance in net.relevance.values())
    subnet = ss.extract(Recurrent(), data, "gumbel", density=0.4, recipe=RECIPE)
    with torch.no_grad():
        found = (subnet.on(Recurrent()).eval()(data.val.inputs).argmax(1) == data.val.labels).float().mean().item()
    assert found == pytest.approx(subnet.metrics["val_accuracy"])


def test_a_target_in_flops_counts_recurrent_layers():
    subnet = ss.extract(Recurrent(), sequences(), "gmp", target={"flops": 0.25}, recipe=RECIPE)
    assert subnet.metrics["kept_macs"] / subnet.metrics["macs"] == pytest.approx(0.25, abs=1e-3)


def test_masked_recurrent_weights_are_exported(tmp_path):
    net = Recurrent()
    subnet = ss.extract(net, sequences(), "magnitude", density=0.1, recipe=RECIPE)
    ss.export(subnet, "state-dict", tmp_path / "lstm.safetensors", network=net, seconds=0.01)
    weight = load_file(tmp_path / "lstm.safetensors")["rnn.weight_hh_l0"]
    assert weight.ne(0).equal(subnet.masks["rnn.weight_hh_l0"] & subnet.weights["rnn.weight_hh_l0"].ne(0))
    with pytest.raises(UserError, match=r"no channel can be removed|no weight reads any channel"):
        ss.export(subnet, "compact", tmp_path / "small.safetensors", network=net, seconds=0.01)


# --- what is frozen ---


@pytest.mark.parametrize("method", ["magnitude", "set", "rigl", "mest", "cht", "gumbel", "snip"])
def test_what_is_frozen_is_left_out_and_stays_as_it_is(method, caplog):
    net = half_frozen()
    data = points(200)
    epochs = ss.Recipe(epochs=10, batch_size=32, lr=0.02, threads=1, device="cpu")
    subnet = ss.extract(net, data, method, density=0.3, recipe=epochs)
    assert list(subnet.masks) == ["2.weight"]
    assert subnet.state["0.weight"].equal(net[0].weight)
    record = subnet.summary()
    assert (record["weights"], record["kept"]) == (48, 14)
    assert record["macs"] == 160 + 48
    assert record["kept_macs"] == 160 + 14
    (whole,) = record["left_whole"]
    assert (whole["name"], whole["why"]) == ("0.weight", "frozen, requires_grad=False")
    assert (whole["parameters"], whole["macs"]) == (160, 160)
    assert whole["parameters_share"] == pytest.approx(160 / 208)


WHOLLY = [name for name in extractor_names() if "weight" in get_extractor(name).paradigm.units]


@pytest.mark.parametrize("method", WHOLLY)
def test_where_all_is_frozen_relevance_alone_is_learned(method):
    cls = get_extractor(method)
    net, data = mlp(hidden=16).requires_grad_(False), points(200)
    if cls.dynamic:
        net, data = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 3)).requires_grad_(False), pictures(60)
    if not trains_weights(cls):
        subnet = ss.extract(net, data, method, recipe=RECIPE)
        assert list(subnet.masks) == ["0.weight", "2.weight"]
        assert subnet.metrics["left_whole"] == []
        return
    with pytest.raises(UserError, match=f"{method} trains weights, but all prunable weights are frozen"):
        ss.extract(net, data, method, recipe=RECIPE)


def test_channels_that_frozen_weights_read_stay():
    net = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    net[2].requires_grad_(False)
    assert [group.name for group in units_of("channel", net, (10,)).groups] == ["2.weight"]  # the last layer reads them
    net[4].requires_grad_(False)
    with pytest.raises(UserError, match="no channels that can be removed; layers that are not pruned read or compute them"):
        units_of("channel", net, (10,))


# --- what is not pruned counts in totals ---


def test_embeddings_and_parameters_of_a_modules_own_are_named(caplog):
    subnet = ss.extract(Tokens(), tokens(), "magnitude", density=0.5, recipe=RECIPE)
    assert list(subnet.masks) == ["out.weight"]
    rows = {row["name"]: (row["parameters"], row["macs"]) for row in subnet.metrics["left_whole"]}
    assert rows == {"embed.weight": (160, 0), "positions": (40, 0), "mix": (64, 5 * 64)}
    assert subnet.metrics["macs"] == 5 * 64 + 16
    assert subnet.metrics["kept_macs"] == 5 * 64 + 8
    (line,) = [record.getMessage() for record in caplog.records if "not pruned" in record.getMessage()]
    assert line == (
        "not pruned: positions, mix (a parameter that is not a layer's weight); embed.weight (an embedding): "
        "94.3% of the parameters, 95.2% of the multiply-accumulates"
    )


def test_targets_rest_on_totals_with_what_is_left_whole():
    net = half_frozen()
    units = units_of("weight", net, (10,), measure="parameters")
    masks = units.keep({"2.weight": torch.rand(3, 16)}, 0.9)
    assert units.cost(masks) == pytest.approx((160 + masks.kept) / 208)
    assert abs(units.cost(masks) - 0.9) <= 0.5 / 208 + 1e-9
    with pytest.raises(UserError, match=r"parameters not pruned are 0\.769 of this network's cost, so 0\.3 cannot be reached"):
        ss.extract(net, points(100), "magnitude", target={"flops": 0.3}, recipe=RECIPE)


def frozen_factory(num_classes):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, num_classes))
    net[1].requires_grad_(False)
    return net


@pytest.mark.parametrize("extractor", ["snip", "mest"])
def test_the_measures_of_a_study_do_too(extractor):
    """Those that are known before training are those that are measured in the end."""
    settings = {
        "network": {"name": "test_what_counts:frozen_factory"},
        "data": {"name": "digits", "limit": 100},
        "extractor": {"name": extractor, "density": 0.25},
        "recipe": RECIPE.model_dump(exclude_unset=True),
    }
    config = check(RunConfig, settings).resolve()
    data = ss.load_data(config.data)
    known, subnet = before_training(config, data), ss.run(config)
    measured = measure(["density", "parameters", "flops", "flops_ratio"], subnet, data)
    assert measured["parameters"] == 64 * 16 + 40
    assert measured["flops_ratio"] == pytest.approx((64 * 16 + 40) / (64 * 16 + 160))
    assert known == {name: measured[name] for name in known}
    assert "parameters" in known


def test_layers_that_are_never_called_are_counted_by_what_is_computed():
    """As in torchvision's Swin, whose attention reads its layers' weights itself."""

    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(10, 16), nn.Linear(16, 3)

        def forward(self, x):
            return self.b(F.linear(x, self.a.weight).relu())

    assert layer_macs(Functional(), {"a.weight": (16, 10), "b.weight": (3, 16)}, (10,)) == {"a.weight": 160, "b.weight": 48}


def test_plain_networks_are_counted_as_ever():
    subnet = ss.extract("small_conv", {"name": "digits", "limit": 60}, "random", density=0.1, recipe=RECIPE)
    record = json.loads(json.dumps(subnet.summary()))
    assert record["left_whole"] == []
    assert (record["macs"], record["weights"]) == (38_400, 22_416)  # 16 * 9 * 16 + 32 * 144 * 4 + 128 * 128 + 1280


# --- what was asked for, and what was reached ---


def test_a_target_that_is_missed_is_said(caplog):
    """Channels in steps of 16: what is nearest to 0.35 of the operations is not within 1 % of it."""
    subnet = ss.extract(
        "small_conv", {"name": "digits", "limit": 60}, "l1_filters", target={"flops": 0.35}, round_to=16, recipe=RECIPE
    )
    asked, reached = subnet.metrics["asked"], subnet.metrics["reached"]
    assert asked == 0.35
    assert reached == pytest.approx(subnet.metrics["kept_macs"] / subnet.metrics["macs"], abs=1e-4)
    assert abs(reached - asked) > 0.0035
    why = "since its units are too large for a closer value; a smaller round_to is closer"
    said = f"l1_filters: what is left of the target's operations or parameters is {reached:.4g} instead of 0.35, {why}"
    assert said in caplog.messages


def test_a_density_that_is_met_to_one_weight_is_not(caplog):
    subnet = ss.extract(mlp(hidden=5), points(100), "magnitude", density=0.31, recipe=RECIPE)  # 20.15 of 65
    assert subnet.metrics["asked"] == 0.31
    assert subnet.metrics["reached"] == 20 / 65
    assert not [text for text in caplog.messages if "asked for" in text]


def test_what_is_left_whole_and_what_was_missed_is_printed():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(20, 8), nn.ReLU(), nn.Linear(8, 2))
    net[0].requires_grad_(False)
    data = (torch.randn(60, 20), torch.arange(60) % 2)
    found = ss.extract(net, data, "magnitude", density=0.5, recipe=ss.Recipe(epochs=1, threads=1, device="cpu"))
    with format.console.capture() as printed:
        format.subnetwork_summary({**found.summary(), "asked": 0.4, "reached": 0.413}, "weight")
    out = " ".join(printed.get().split())
    assert "not pruned 0.weight (frozen, requires_grad=False, 90.91 % of the parameters)" in out
    assert "target 0.4; reached 0.413" in out


class ByInputs(nn.Module):
    """A linear layer whose weight is (inputs, outputs), as the Conv1D of transformers."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))

    def forward(self, x):
        return x @ self.weight


def test_a_weight_that_is_stored_by_inputs_is_used_once_at_each_place():
    net = nn.Sequential(ByInputs(4, 12), nn.ReLU(), ByInputs(12, 3))
    assert layer_macs(net, {"0.weight": (4, 12), "2.weight": (12, 3)}, (5, 4)) == {"0.weight": 5 * 48, "2.weight": 5 * 36}


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.hidden, self.out = nn.Embedding(50, 8), nn.Linear(40, 32), nn.Linear(32, 2)

    def forward(self, x):
        return self.out(self.hidden(self.embed(x).flatten(1)).relu())


@pytest.mark.parametrize("name", ["l1_filters", "magnitude", "snip", "taylor"])
def test_channels_that_only_an_embedding_computes_stay(name):
    words = torch.randint(0, 50, (60, 5)), torch.randint(0, 2, (60,))
    subnet = ss.extract(Words(), words, name, density=0.5, unit="channel", round_to=1, recipe=RECIPE)
    assert bool(subnet.masks["hidden.weight"].any(0).all())
    assert subnet.compact().embed.embedding_dim == 8
