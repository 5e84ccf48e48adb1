"""Files that are smaller and run faster: sparse layers, exported networks, and the command that makes them."""

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from toys import pictures, points

import subnet_search as ss
from subnet_search.cli import main
from subnet_search.cli.commands.export import times
from subnet_search.core.errors import RunError, UserError
from subnet_search.core.timing import Latency, in_turn
from subnet_search.data import Batches
from subnet_search.deploy import sparse
from subnet_search.deploy.benchmark import advice, compared, counts
from subnet_search.deploy.export import export
from subnet_search.deploy.exported_network import Deployed, load_deployed, read_artifact
from subnet_search.deploy.sparse import sparsify
from subnet_search.deploy.sparse_layers import SparseConv1x1, SparseLinear, sparse_form
from subnet_search.structure.compact import difference_between
from subnet_search.training import Recipe

SHORT = Recipe(epochs=1, batch_size=20, threads=1, device="cpu")


def linear(weight, bias=None):
    layer = nn.Linear(len(weight[0]), len(weight), bias=bias is not None)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(weight))
        if bias is not None:
            layer.bias.copy_(torch.tensor(bias))
    return layer


def thinned(layer, density=0.1):
    with torch.no_grad():
        layer.weight.mul_(torch.rand(layer.weight.shape, generator=torch.Generator().manual_seed(0)) < density)
    return layer


# Verdicts


@pytest.mark.parametrize(
    ("dense", "exported", "verdict"),
    [
        ((2.84, 2.7, 3.0), (1.0, 0.9, 1.1), "faster"),
        ((2.84, 1.0, 3.0), (1.0, 0.9, 1.1), "unsure"),  # the quartiles overlap
        ((1.0, 0.9, 1.1), (2.84, 2.7, 3.0), "slower"),
        ((1.0, 0.9, 1.1), (2.84, 1.0, 3.0), "unsure"),
        ((1.0, 0.99, 1.01), (0.97, 0.96, 0.98), "as fast"),
    ],
)
def test_one_verdict_from_the_times(dense, exported, verdict):
    assert compared(Latency(*dense, count=9), Latency(*exported, count=9)) == verdict


def test_the_last_line_says_what_stands_beside_the_times(capsys):
    time = {"median": 1.0, "low": 0.9, "high": 1.1}
    rows = [
        {"batch": batch, "threads": 1, "dense": time, "exported": time, "speedup": speedup, "verdict": verdict}
        for batch, speedup, verdict in ((1, 2.84, "unsure"), (16, 3.0, "faster"), (256, 4.0, "faster"))
    ]
    times({"latency": rows, "compacted": True, "faster": True, "advice": None})
    *table, last = capsys.readouterr().out.splitlines()
    assert last == "faster at batch 16, 256; no clear difference at batch 1"
    assert any(line.endswith("2.84x unsure") for line in table)
    times({"latency": rows[:1], "compacted": True, "faster": False, "advice": "try another"})
    assert capsys.readouterr().out.splitlines()[-1] == "no clear difference at batch 1: try another"


# Sparse layers


def test_csr_by_hand():
    layer = sparse_form(linear([[0, 5.0, 0], [0, 0, 0], [7, 0, 8]], [1.0, 2, 3]), "csr", 16)
    assert layer.values.tolist() == [5, 7, 8]
    assert layer.col.tolist() == [1, 0, 2]
    assert layer.crow.tolist() == [0, 1, 1, 3]
    assert layer.col.dtype == layer.crow.dtype == torch.int32
    assert layer(torch.tensor([[1.0, 10, 100], [0, 1, 0]])).tolist() == [[51, 2, 810], [6, 2, 3]]
    assert layer.multiplied == 3 / 9


def test_bsr_by_hand():
    """2x2 blocks of a 3x3 matrix, whose last row and column are half-blocks: [[1, 2], [0, 3]] at 0, 0, and [[9]] at 1, 1."""
    layer = sparse_form(linear([[1.0, 2, 0], [0, 3, 0], [0, 0, 9]]), "bsr", 2)
    assert layer.values.tolist() == [[[1, 2], [0, 3]], [[9, 0], [0, 0]]]
    assert layer.col.tolist() == [0, 1]
    assert layer.crow.tolist() == [0, 1, 2]
    assert layer(torch.tensor([[1.0, 10, 100]])).tolist() == [[21, 30, 900]]


def test_two_of_four_by_hand():
    """The second row has one that lives, and its first dead one beside it: bits 1010 1001."""
    layer = sparse_form(linear([[1.0, 0, 2, 0], [0, 0, 0, 3]], [0.5, 0]), "2:4", 16)
    assert layer.values.tolist() == [[1, 2], [0, 3]]
    assert layer.bits.tolist() == [0b10101001]
    assert layer(torch.tensor([[1.0, 10, 100, 1000]])).tolist() == [[201.5, 3000]]
    layer.bits.fill_(0b11101001)
    with pytest.raises(UserError, match="two of every four"):
        layer.check()


@pytest.mark.parametrize("kind", ["csr", "bsr"])
@pytest.mark.parametrize("bias", [True, False])
def test_sparse_layers_say_what_dense_ones_say(kind, bias):
    torch.manual_seed(0)
    conv = thinned(nn.Conv2d(19, 21, 1, stride=(2, 3), bias=bias))
    x = torch.randn(2, 19, 5, 7)
    torch.testing.assert_close(sparse_form(conv, kind, 4)(x), conv(x))
    full = thinned(nn.Linear(19, 21, bias=bias))
    for shape in ((19,), (1, 19), (3, 19), (2, 3, 19)):
        x = torch.randn(shape)
        expected = full(x)
        torch.testing.assert_close(sparse_form(full, kind, 4)(x), expected)
    dead = thinned(nn.Linear(19, 21, bias=bias), 0)
    assert sparse_form(dead, kind, 4)(torch.ones(2, 19)).tolist() == dead(torch.ones(2, 19)).tolist()


def test_indices_that_lead_elsewhere_are_found():
    layer = sparse_form(linear([[0, 5.0, 0], [7, 0, 8]]), "csr", 16)
    layer.check()
    layer.col[0] = 3
    with pytest.raises(UserError, match="the indices of a sparse layer are invalid"):
        layer.check()


# A network whose layers are sparse


class Mixed(nn.Module):
    """A 3x3 and a 1x1 convolution, and a linear layer that is used twice, under two names."""

    def __init__(self):
        super().__init__()
        self.conv, self.point = thinned(nn.Conv2d(1, 8, 3)), thinned(nn.Conv2d(8, 8, 1))
        self.once = self.again = thinned(nn.Linear(8, 8))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.point(self.conv(x).relu()).relu().mean((2, 3))
        return self.head(self.again(self.once(x).relu()))


def fixed_times(monkeypatch, dense, *sparse_times):
    left = iter(sparse_times)
    monkeypatch.setattr(sparse, "in_turn", lambda *_, **__: [Latency(t, t, t, 1) for t in (dense, next(left))])


def test_layers_are_sparse_where_that_was_faster(monkeypatch):
    net, x = Mixed(), torch.randn(4, 1, 8, 8)
    fixed_times(monkeypatch, 2.0, 1.0, 3.0)
    out, choices = sparsify(net, "csr", x)
    assert [(c.layer, c.dense, c.sparse, c.kept) for c in choices] == [("point", 2, 1, "csr"), ("once", 2, 3, "dense")]
    assert isinstance(out.point, SparseConv1x1)
    assert type(out.once) is nn.Linear
    assert type(out.conv) is nn.Conv2d  # 3x3
    assert type(net.point) is nn.Conv2d
    assert difference_between(net, out, x) < 1e-5


def test_no_layer_is_faster(monkeypatch):
    fixed_times(monkeypatch, 2.0, 2.5, 2.0)
    with pytest.raises(
        UserError, match=r"no layer is significantly faster as csr at batch 4: the best, once of density .* takes 2 ms"
    ):
        sparsify(Mixed(), "csr", torch.randn(4, 1, 8, 8))


def test_without_measuring_all_are_sparse_under_all_their_names():
    net, x = Mixed(), torch.randn(4, 1, 8, 8)
    out, choices = sparsify(net, "bsr", x, block=4, measure=False)
    assert [choice.kept for choice in choices] == ["bsr", "bsr"]
    assert out.once is out.again
    assert isinstance(out.once, SparseLinear)
    assert type(out.head) is nn.Linear  # it has no zeros
    assert difference_between(net, out, x) < 1e-5


class Reading(nn.Module):
    """Reads the weight of a layer that it calls too."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(10, 32), nn.Linear(32, 3)

    def forward(self, x):
        return self.b(self.a(x).relu()) + self.b.weight.mean()


def test_torchs_own_encoder_calls_sparse_layers(tmp_path, always_sparse):
    """In evaluation mode it would read their weights, of itself and of its first layer."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    net = nn.Sequential(nn.Linear(4, 8), nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(24, 3))
    data = (torch.randn(60, 3, 4), torch.arange(60) % 3)
    subnet = ss.extract(net, data, "magnitude", density=0.5, scope="uniform", recipe=SHORT)
    record = export(subnet, "csr", tmp_path / "file", network=net, seconds=0)
    assert {"1.layers.0.linear1", "1.layers.1.linear2"} <= {layer["layer"] for layer in record["layers"]}
    assert difference_between(subnet.on(net), load_deployed(tmp_path / "file", net), torch.randn(5, 3, 4)) < 1e-5


def test_weights_that_are_read_otherwise(tmp_path, always_sparse):
    subnet = ss.extract(Reading(), points(), "magnitude", density=0.5, scope="uniform", recipe=SHORT)
    with pytest.raises(UserError, match="cannot export to csr: the forward pass reads weights of its layers"):
        export(subnet, "csr", tmp_path / "file", network=Reading(), seconds=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["csr", "bsr"])
def test_a_network_without_such_layers(kind):
    net = nn.Sequential(thinned(nn.Conv2d(1, 4, 3)), nn.Flatten(), nn.Linear(4 * 36, 3))
    with pytest.raises(
        UserError, match=f"{kind} needs linear layers or 1x1 convolutions with zero weights, and this network has none"
    ):
        sparsify(net, kind, torch.randn(4, 1, 8, 8))


def test_two_of_four_without_such_masks_and_without_a_gpu():
    with pytest.raises(UserError, match="no linear layer of this network has 2:4 sparsity"):
        sparsify(nn.Sequential(thinned(nn.Linear(64, 64), 0.9)), "2:4", torch.randn(4, 64))
    net = nn.Sequential(nn.Linear(64, 64))
    with torch.no_grad():
        net[0].weight.view(-1, 4)[:, ::2] = 0
    with pytest.raises(UserError, match="2:4 needs an NVIDIA GPU with sparse tensor cores"):
        sparsify(net, "2:4", torch.randn(4, 64))


def test_two_of_four_of_other_sizes():
    net = nn.Sequential(nn.Linear(66, 64), nn.Linear(64, 10))
    with torch.no_grad():
        for layer in net:
            layer.weight[:, ::2] = 0
    with pytest.raises(UserError, match="are multiples of 64; these have 2:4 sparsity, but not these sizes: 0, 1"):
        sparsify(net, "2:4", torch.randn(4, 66))


def test_calls_are_timed_in_turn():
    called = []
    found = in_turn([lambda: called.append("a"), lambda: called.append("b")], seconds=60, passes=5)
    assert called == ["a", "b"] * 10  # five rounds to warm up
    assert [one.count for one in found] == [5, 5]
    assert all(0 <= one.low <= one.median <= one.high for one in found)


def test_what_is_counted():
    """8x8 of which 10 live, on top of it a dense 8x3: as CSR 10 weights are stored of those 64."""
    net, x = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3)), torch.randn(2, 8)
    with torch.no_grad():
        net[0].weight.view(-1)[10:] = 0
    out, _ = sparsify(net, "csr", x, measure=False)
    assert counts(net, net, out, torch.zeros(2, 8)) == {
        "channels": {},
        "dense_weights": 88,
        "weights": 34,
        "kept": 34,
        "dense_macs": 88,
        "dense_kept_macs": 34,
        "macs": 34,
        "kept_macs": 34,
    }


def test_advice():
    convs, full = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3)), nn.Sequential(nn.Linear(8, 8))
    assert "do not make a convolution faster: use unit=channel and --to compact" in advice(
        "weight", "state-dict", convs, torch.zeros(2, 1, 8, 8)
    )
    assert "use --to compact, which removes the pruned channels" in advice(
        "channel", "state-dict", convs, torch.zeros(2, 1, 8, 8)
    )
    assert "too few channels" in advice("channel", "compact", convs, torch.zeros(2, 1, 8, 8))
    assert "about 90 % of their weights are zero" in advice("weight", "onnx", full, torch.zeros(2, 8))
    assert "use --to csr" in advice("weight", "onnx", nn.Sequential(thinned(full[0])), torch.zeros(2, 8))


# The file, and what is written to it


def conv_bn():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(8 * 36, 3)),
    )


@pytest.fixture(scope="module")
def channels():
    """A subnetwork of half the channels, and the module it was handed in as."""
    net = conv_bn()
    return ss.extract(net, pictures(), "magnitude", density=0.5, unit="channel", recipe=SHORT), net


@pytest.fixture(scope="module")
def weights():
    net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 3))
    return ss.extract(net, points(), "magnitude", density=0.1, recipe=SHORT), net


@pytest.fixture
def always_sparse(monkeypatch):
    monkeypatch.setattr(sparse, "in_turn", lambda *_, **__: [Latency(2, 2, 2, 1), Latency(1, 1, 1, 1)])


def test_a_compact_file(channels, tmp_path):
    subnet, net = channels
    record = export(subnet, "compact", tmp_path / "small", network=net, seconds=0)
    assert record["difference"] < 1e-5
    assert record["weights"] == record["kept"] == subnet.masks.kept  # of each channel both sides are gone
    assert record["channels"] == {"0": [8, 16], "3": [4, 8]}
    assert record["macs"] == record["kept_macs"] == record["dense_kept_macs"] < record["dense_macs"]
    assert record["bytes"] == (tmp_path / "small").stat().st_size
    assert [row["batch"] for row in record["latency"]] == [1, 16, 256]
    small = load_deployed(tmp_path / "small", net)
    assert {type(module) for module in small.modules()} == {type(module) for module in net.modules()}
    x = torch.randn(5, 1, 8, 8)
    assert difference_between(subnet.on(net), small, x) < 1e-5
    assert difference_between(small, subnet.compact(x, net), x) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["small"]


@pytest.mark.parametrize("to", ["csr", "bsr"])
def test_a_sparse_file(weights, to, tmp_path, always_sparse):
    subnet, net = weights
    record = export(subnet, to, tmp_path / "file", network=net, seconds=0, batch=4)
    assert [row["batch"] for row in record["latency"]] == [1, 4, 16, 256]
    assert {layer["kept"] for layer in record["layers"]} == {to}
    loaded, x = load_deployed(tmp_path / "file", net), torch.randn(5, 10)
    assert difference_between(subnet.on(net), loaded, x) < 1e-5
    assert isinstance(loaded[0], SparseLinear)
    assert not any(name.endswith("weight") for name in loaded.state_dict())
    if to == "csr":
        assert record["weights"] == record["kept"]
    else:
        assert record["whole"] == "removing channels would break up its blocks"


def test_a_state_dict_is_what_the_network_loads(channels, tmp_path):
    subnet, net = channels
    record = export(subnet, "state-dict", tmp_path / "file.safetensors", network=net, seconds=0)
    other = conv_bn()
    other.load_state_dict(load_file(tmp_path / "file.safetensors"))
    assert difference_between(subnet.on(net), other, torch.randn(5, 1, 8, 8)) == 0
    assert record["weights"] == record["dense_weights"]


@pytest.mark.slow
def test_onnx_takes_any_batch(channels, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    subnet, net = channels
    record = export(subnet, "onnx", tmp_path / "net.onnx", network=net, seconds=0)
    assert record["whole"] is None
    assert record["weights"] == subnet.masks.kept
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    for batch in (1, 3):
        x = torch.randn(batch, 1, 8, 8)
        [logits] = session.run(["logits"], {"input": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), subnet.on(net).eval()(x), rtol=1e-4, atol=1e-5)


class Queried(nn.Module):
    """Attention by queries that are repeated for each input, in which torch's exporter sees a batch of the example's size."""

    def __init__(self):
        super().__init__()
        self.query, self.head = nn.Parameter(torch.randn(1, 3, 8)), nn.Linear(24, 3)
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, batch_first=True), 1)

    def forward(self, x):
        return self.head(self.decoder(self.query.expand(len(x), -1, -1), x).flatten(1))


@pytest.mark.slow
def test_onnx_for_one_batch_alone_is_not_written(tmp_path, caplog):
    pytest.importorskip("onnxruntime")
    net, data = Queried(), (torch.randn(60, 5, 8), torch.arange(60) % 3)
    subnet = ss.extract(net, data, "magnitude", density=0.5, unit="channel", recipe=SHORT)
    caplog.clear()  # of what was not pruned
    with pytest.raises(UserError, match=r"^the ONNX model does not run at batch 7: .*INVALID_ARGUMENT") as caught:
        export(subnet, "onnx", tmp_path / "file", network=net, seconds=0)
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_what_cannot_be_smaller_is_exported_as_it_is(tmp_path, always_sparse):
    net = nn.Sequential(nn.Linear(10, 4), nn.ReLU(), nn.Linear(4, 3))
    subnet = ss.extract(net, points(), "magnitude", density=0.9, scope="uniform", recipe=SHORT)
    record = export(subnet, "csr", tmp_path / "file", network=net, seconds=0)
    assert "no channel can be removed" in record["whole"]


def test_batch_norm_recalibrated(channels, tmp_path):
    subnet, net = channels
    export(subnet, "state-dict", tmp_path / "file", network=net, data=pictures(), recalibrate=2, seconds=0)
    state, origin = load_file(tmp_path / "file"), subnet.origin
    statistics = (torch.tensor(origin.mean), torch.tensor(origin.std))
    source = Batches(pictures().train, *statistics, origin.recipe["batch_size"], origin.seed)
    with torch.no_grad():
        means = [subnet.on(net)[0](source.batch(step)[0]).mean((0, 2, 3)) for step in (0, 1)]
    torch.testing.assert_close(state["1.running_mean"], (means[0] + means[1]) / 2)
    assert not torch.equal(state["1.running_mean"], subnet.state_dict()["1.running_mean"])


@pytest.mark.slow
def test_loads_without_what_found_and_traced_it(tmp_path):
    subnet = ss.extract("small_conv", "digits", "magnitude", density=0.5, unit="channel", recipe=SHORT)
    export(subnet, "compact", tmp_path / "small", seconds=0)
    code = f"""
import sys
for name in ("optuna", "torch_pruning", "sklearn", "onnx"):
    sys.modules[name] = None  # an import of it raises
import torch
from subnet_search import load_deployed
net = load_deployed({str(tmp_path / "small")!r})
print(tuple(net(torch.zeros(2, 1, 8, 8)).shape), any(name.startswith("subnet_search.search") for name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "(2, 10) False\n", done.stderr


# What cannot be


def test_other_networks_and_other_files(channels, weights, tmp_path):
    subnet, net = channels
    path = tmp_path / "small"
    export(subnet, "compact", path, network=net, seconds=0)
    with pytest.raises(UserError, match="is of another network"):
        load_deployed(path, weights[1])
    with pytest.raises(UserError, match="is of another network"):
        load_deployed(path, nn.Sequential(*conv_bn(), nn.Linear(3, 3)))
    with pytest.raises(UserError, match="passed from Python"):
        load_deployed(path)
    for load in (subnet.on, lambda other: load_deployed(path, other)):
        with pytest.raises(UserError, match=r"^pass a network: ReLU\(\), not its class$"):
            load(nn.ReLU)
        with pytest.raises(UserError, match=r"^pass a network: an nn\.Module, got str$"):
            load("conv2")
    with pytest.raises(UserError, match=r"small\.onnx is an ONNX model: open it with onnxruntime"):
        load_deployed(tmp_path / "small.onnx")
    subnet.save(tmp_path / "subnetwork")
    assert isinstance(read_artifact(path), Deployed)
    assert isinstance(read_artifact(tmp_path / "subnetwork"), ss.Subnetwork)
    with pytest.raises(UserError, match="is not an exported network: make one with subnet-search export"):
        load_deployed(tmp_path / "subnetwork")
    with pytest.raises(UserError, match="is not a subnetwork file"):
        ss.Subnetwork.load(path)
    with pytest.raises(UserError, match="no such exported network"):
        load_deployed(tmp_path / "nothing")


def test_a_damaged_file(channels, tmp_path):
    subnet, net = channels
    path = tmp_path / "small"
    export(subnet, "compact", path, network=net, seconds=0)
    whole = path.read_bytes()
    for damaged in (whole[:-40], whole[:-1] + bytes([whole[-1] ^ 1]), b"", b"{}" * 20):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=str(path)):
            load_deployed(path, net)


def test_indices_of_a_file_are_not_trusted(weights, tmp_path, always_sparse):
    subnet, net = weights
    export(subnet, "csr", tmp_path / "file", network=net, seconds=0)
    found = Deployed.load(tmp_path / "file")
    found.tensors["0.col"][0] = 10_000
    found.save(tmp_path / "file")  # with a hash that fits
    with pytest.raises(UserError, match="the indices of a sparse layer are invalid"):
        load_deployed(tmp_path / "file", net)


@pytest.mark.parametrize(
    ("to", "options", "error", "said"),
    [
        ("compcat", {}, UserError, "unknown format 'compcat': did you mean 'compact'"),
        ("compact", {"network": None}, UserError, "passed from Python.*--network package.module:factory"),
        ("2:4", {}, UserError, "2:4 needs layers whose inputs and outputs are multiples of 64"),
        ("csr", {}, UserError, "no layer is significantly faster as csr at batch 16.*use unit=channel and --to compact"),
        ("compact", {"recalibrate": 1}, UserError, "no batch norm to recalibrate"),
        ("compact", {"data": "digits"}, UserError, "data is only used to recalibrate batch norm: set the number of batches"),
        ("compact", {"recalibrate": -1}, UserError, "recalibrate must be at least 0, got -1"),
        ("csr", {"batch": 0}, UserError, "batch must be at least 1, got 0"),
        ("csr", {"threads": 0}, UserError, "threads must be at least 1, got 0"),
        ("compact", {"network": "no.such.module:net"}, UserError, "cannot import"),
    ],
)
def test_mistakes_leave_an_earlier_file_alone(to, options, error, said, weights, tmp_path, monkeypatch):
    fixed_times(monkeypatch, 1.0, 2.0, 2.0)
    subnet, net = replace(weights[0], module=None), weights[1]  # as read from a file
    (tmp_path / "file").write_bytes(b"before")
    with pytest.raises(error, match=said) as caught:
        export(subnet, to, tmp_path / "file", **{"network": net, "seconds": 0, **options})
    assert len(str(caught.value).splitlines()) == 1
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("file", b"before")]


def test_a_result_that_says_something_else_is_not_written(channels, tmp_path, monkeypatch):
    subnet, net = channels
    monkeypatch.setattr("subnet_search.deploy.formats.compact", lambda masked, example, every: conv_bn())
    with pytest.raises(RunError, match="not exported: the logits of compact differ from the masked network's by"):
        export(subnet, "compact", tmp_path / "file", network=net, seconds=0)
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_cannot_be_written(channels, tmp_path):
    subnet, net = channels
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(RunError, match=r"cannot write .*: Not a directory"):
        export(subnet, "compact", tmp_path / "file" / "small", network=net)
    with pytest.raises(UserError, match="is a folder: name the file to write"):
        export(subnet, "compact", tmp_path, network=net)
    with pytest.raises(RunError, match=r"cannot write .*: File name too long"):
        export(subnet, "compact", tmp_path / ("x" * 300), network=net)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe is a device: name the file to write"):
        export(subnet, "compact", tmp_path / "pipe", network=net)
    with pytest.raises(UserError, match=r"export needs a subnetwork, ss\.Subnetwork\.load\(path\), got str"):
        export("subnetwork.safetensors", "compact", tmp_path / "small", network=net)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe"]


def test_a_full_disk(channels, tmp_path, monkeypatch):
    subnet, net = channels
    (tmp_path / "file").write_bytes(b"before")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for to in ("compact", "state-dict"):
        with pytest.raises(RunError, match=r"cannot write .*file: No space left on device"):
            export(subnet, to, tmp_path / "file", network=net, seconds=0)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("file", b"before")]


def test_an_example_of_the_wrong_shape(channels):
    subnet, net = channels
    with pytest.raises(UserError, match=r"the example has shape \(2, 3, 8, 8\); this network needs \('batch', 1, 8, 8\)"):
        subnet.compact(torch.zeros(2, 3, 8, 8), net)
    with pytest.raises(UserError, match="the example is empty"):
        subnet.compact(torch.zeros(0, 1, 8, 8), net)
    with pytest.raises(UserError, match="the outputs of this network are not finite"):
        subnet.compact(torch.full((2, 1, 8, 8), torch.nan), net)


def test_onnx_that_is_not_installed(channels, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"ONNX needs the package onnxscript: pip install 'subnet-search\[onnx\]'"):
        export(channels[0], "onnx", tmp_path / "file", network=channels[1])


# The command


@pytest.mark.slow
def test_the_command_on_digits(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def command(*words):
        with pytest.raises(SystemExit) as ended:
            main([*words])
        said = capsys.readouterr()
        assert ended.value.code == 0, said.err
        return said.out

    run = ["extract", "-s", "network=conv2", "-s", "extractor=magnitude", "-s", "extractor.density=0.5", "-s", "unit=channel"]
    command(*run, "-s", "recipe.lr=0.02", "-s", "recipe.epochs=8", "-s", "recipe.threads=1", "--out", "runs/a")
    table = command("export", "runs/a/subnetwork.safetensors", "small.safetensors", "--to", "compact")
    for text in (
        "file",
        "weights stored",
        "multiply-accumulates",
        "ms at batch 1 ",
        "ms at batch 16 ",
        "ms at batch 256 ",
        "x",
    ):
        assert text in table
    assert "faster" in table.splitlines()[-2]
    masked, small = (
        json.loads(command("evaluate", f, "--json")) for f in ("runs/a/subnetwork.safetensors", "small.safetensors")
    )
    assert small["accuracy"] == masked["accuracy"] > 0.5
    assert small["nll"] == pytest.approx(masked["nll"], rel=1e-5)
    export = small["export"]
    assert export["weights"] == masked["kept"]
    assert Path("small.safetensors").stat().st_size < 0.5 * export["dense_bytes"]

    def mistake(*words):
        with pytest.raises(SystemExit) as ended:
            main(["export", *words])
        out, err = capsys.readouterr()
        *progress, last = err.splitlines()
        assert (ended.value.code, out, last[:7]) == (2, "", "error: ")
        assert not any("error" in line for line in progress)
        return last

    file = "runs/a/subnetwork.safetensors"
    assert "unknown format 'zip'" in mistake(file, "x", "--to", "zip")
    assert "is the subnetwork file itself" in mistake(file, file, "--to", "compact")
    assert "no such subnetwork file: nothing" in mistake("nothing", "x", "--to", "compact")
    assert "2:4" in mistake(file, "x", "--to", "2:4")
    assert "no batch norm to recalibrate" in mistake(file, "x", "--to", "compact", "--recalibrate", "3")
    assert not Path("x").exists()
