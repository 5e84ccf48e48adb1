"""Networks with several inputs, keywords, masks and nested outputs, from the run to every file."""

import json
from dataclasses import dataclass, replace

import onnx
import pytest
import torch
import torch.nn.functional as F
from networks_of_users import NETWORKS, BothLosses, Encoder, FromHub, Logits, TwoHeads, UNet, images_and_words, pixels
from safetensors.torch import load_file
from torch import nn
from toys import pictures, points

import subnet_search as ss
from subnet_search.artifact.input_spec import check_rows, random_inputs, spec_of
from subnet_search.core.errors import RunError, UserError
from subnet_search.core.timing import Latency
from subnet_search.deploy import sparse
from subnet_search.deploy.export import export
from subnet_search.deploy.exported_network import Deployed, load_deployed
from subnet_search.deploy.onnx import OnnxNetwork, input_names, to_onnx
from subnet_search.deploy.sparse import sparsify
from subnet_search.evaluation.cost import all_macs
from subnet_search.evaluation.latency import latency
from subnet_search.nets import call, check_batch_norm, compared, make_dynamic, outputs_in
from subnet_search.structure.channel_groups import couple
from subnet_search.structure.compact import compact, difference_between
from subnet_search.tasks import task_of
from subnet_search.tasks.calls import without_labels

SHORT = ss.Recipe(epochs=1, batch_size=20, lr=0.05, threads=1, device="cpu")
RUNS = {
    "magnitude": {"extractor": "magnitude", "density": 0.5},
    "gumbel": {"extractor": "gumbel", "density": 0.4},
    "channels": {"extractor": "magnitude", "density": 0.5, "unit": "channel", "round_to": 1},
}


def extracted(case, out=None, **options):
    return ss.extract(case.network(), case.data(), task=case.task(), recipe=SHORT, out=out, **options)


@pytest.fixture
def always_sparse(monkeypatch):
    monkeypatch.setattr(sparse, "in_turn", lambda *_, **__: [Latency(2, 2, 2, 1), Latency(1, 1, 1, 1)])


def feed(names, inputs):
    """The arrays of a mapping, tuple or tensor for ONNX Runtime, by name."""
    given = [inputs] if isinstance(inputs, torch.Tensor) else inputs.values() if isinstance(inputs, dict) else inputs
    return dict(zip(names, (one.numpy() for one in given if isinstance(one, torch.Tensor)), strict=True))


LONGER = {
    "encoder",
    "recurrent",
    "language, a tensor",
    "hub",
    "hub, own loss",
    "two heads in a tuple",
}  # like others that are always run


@pytest.mark.parametrize("run", [pytest.param(name, marks=[pytest.mark.long] * (name != "channels")) for name in RUNS])
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name in LONGER)) for name in NETWORKS])
def test_from_the_run_to_every_file(name, run, tmp_path, always_sparse):
    case = NETWORKS[name]
    subnet = extracted(case, tmp_path / "run", **RUNS[run])
    every = subnet.origin.every_output
    leading = task_of(case.task() or "classification").leading
    record = ss.evaluate(subnet, data=case.data(), task=case.task(), latency=run == "channels")
    assert record[leading] == pytest.approx(subnet.metrics[f"val_{leading}"])
    assert run != "channels" or record["compacted"]

    loaded, net = ss.Subnetwork.load(tmp_path / "run" / "subnetwork.safetensors"), case.network()
    assert loaded.sha256 == subnet.sha256
    masked = loaded.on(net).eval()
    inputs = loaded.inputs(5)
    assert difference_between(subnet.network(), masked, inputs, every) == 0

    export(loaded, "state-dict", tmp_path / "tensors", network=net, seconds=0)
    net.load_state_dict(load_file(tmp_path / "tensors"))
    assert difference_between(masked, net, inputs, every) == 0

    for to in ("compact", "bsr") if run == "channels" else ("csr", "bsr"):  # of single weights rarely a whole channel goes
        made = export(loaded, to, tmp_path / "moved" / to, network=case.network(), seconds=0)
        assert made["difference"] < 1e-5
        assert made["input"] == case.how
        small = load_deployed(tmp_path / "moved" / to, case.network())  # beside no file of inputs: with random ones
        assert difference_between(masked, small, inputs, every) < 1e-5
        if to == "compact":
            assert sum(map(torch.numel, small.parameters())) < sum(map(torch.numel, masked.parameters()))
            found = Deployed.load(tmp_path / "moved" / to)
            again = ss.evaluate(found, network=case.network(), data=case.data(), task=case.task())
            assert again[leading] == pytest.approx(record[leading], abs=1e-5)

    made = export(loaded, "onnx", tmp_path / "model.onnx", network=case.network(), seconds=0)
    assert run != "channels" or made["whole"] is None
    raw = (tmp_path / "model.onnx").read_bytes()
    runtime = OnnxNetwork(raw, 1)
    assert [one.name for one in runtime.session.get_inputs()] == list(case.inputs)
    assert [one.name for one in runtime.session.get_outputs()] == list(case.outputs)
    for batch in (1, 2, 9):
        given = loaded.inputs(batch)
        expected = compared(call(masked, given), every)
        assert difference_between(masked, runtime, given, every) < 1e-5
        arrays = runtime.session.run(None, feed(case.inputs, given))
        for one, other in zip(expected, arrays, strict=True):
            torch.testing.assert_close(torch.from_numpy(other), one, rtol=1e-4, atol=1e-5)


def test_onnx_models_name_no_files_of_this_machine(tmp_path):
    case = NETWORKS["two heads"]
    export(extracted(case, **RUNS["gumbel"]), "onnx", tmp_path / "model.onnx", seconds=0)
    raw = (tmp_path / "model.onnx").read_bytes()
    assert b".py" not in raw
    assert b"stack_trace" not in raw
    model = onnx.load_from_string(raw)
    stored = {entry.key: entry.value for entry in model.metadata_props}
    assert (stored.keys(), stored["input"]) == ({"input", "subnet_search"}, case.how)
    assert all(one.type.tensor_type.shape.dim[0].dim_param for one in (*model.graph.input, *model.graph.output))


def test_one_tensor_is_input_and_logits_as_before(tmp_path):
    subnet = ss.extract(nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 3)), points(), "magnitude", recipe=SHORT)
    record = export(subnet, "onnx", tmp_path / "model.onnx", seconds=0)
    model = onnx.load(tmp_path / "model.onnx")
    assert [one.name for one in model.graph.input] == ["input"]
    assert [one.name for one in model.graph.output] == ["logits"]
    assert record["input"] == "float32 (N, 10): values as in the data, not normalised"


# Inputs


class Noting(nn.Module):
    """Arguments of all kinds, in nested tensors too."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, parts, scale=1.0, *, how="sum", mask=None):
        a, b = parts["a"], parts["b"][0]
        total = a + b if how == "sum" else a - b
        return self.last(self.first(total * scale).relu()) + (0 if mask is None else mask.float())


def test_nested_inputs_with_plain_values_beside_them(tmp_path):
    class Calls:
        def loss(self, network, batch):
            out = network({"a": batch["a"], "b": (batch["b"],)}, 0.5, how="difference", mask=None)
            return F.cross_entropy(out, batch["kind"])

    data = {"a": torch.randn(40, 4), "b": torch.randn(40, 4), "kind": torch.arange(40) % 2}
    ss.extract(Noting(), data, "magnitude", density=0.5, task=Calls(), recipe=SHORT, out=tmp_path / "run")
    loaded = ss.Subnetwork.load(tmp_path / "run" / "subnetwork.safetensors")
    given = loaded.inputs(3)
    assert given["how"] == "difference"
    assert given["scale"] == 0.5
    assert given["mask"] is None
    assert torch.equal(given["parts"]["b"][0], data["b"][subnet_rows(data["b"], given["parts"]["b"][0])])
    record = export(loaded, "onnx", tmp_path / "model.onnx", network=Noting(), seconds=0)
    assert record["input"] == ("parts.a float32 (N, 4), parts.b.0 float32 (N, 4), scale = 0.5, how = 'difference', mask = None")
    runtime = OnnxNetwork((tmp_path / "model.onnx").read_bytes(), 1)
    assert runtime.inputs == ["parts.a", "parts.b.0"]
    assert difference_between(loaded.on(Noting()), runtime, loaded.origin.inputs(4)) < 1e-5


def subnet_rows(all_rows, some):
    return [int((all_rows == row).all(1).nonzero()) for row in some]


def test_one_tensor_of_several_in_a_batch(tmp_path):
    class OfMapping:
        def loss(self, network, batch):
            return F.cross_entropy(network(batch["words"]), batch["kind"])

    case = NETWORKS["recurrent"]
    data = {key: value for key, value in images_and_words().items() if key != "size"}
    subnet = ss.extract(case.network(), data, "gumbel", task=OfMapping(), recipe=SHORT)
    assert subnet.origin.spec == {"shape": [6], "dtype": "int64", "low": 1, "high": 19}
    record = export(subnet, "compact", tmp_path / "file", seconds=0)
    assert record["input"] == "int64 (N, 6): indices, such as token ids, from 1 to 19"
    load_deployed(tmp_path / "file", case.network())  # random inputs are no other tokens


def test_random_inputs_have_a_mask_of_the_run():
    """Random masks could mask all of an item, and so could the value that most have."""
    padding = torch.tensor([[False, True, True], [False, False, True]])
    spec = json.loads(json.dumps(spec_of((torch.tensor([[3, 0, 0], [5, 7, 0]]), padding, {"ids": padding.long()}))))
    assert spec[1]["mask"] == [0, 1, 1]
    tokens, mask, more = random_inputs(spec, 4, torch.Generator().manual_seed(0))
    assert tokens.shape == (4, 3)
    assert 0 <= tokens.min() <= tokens.max() <= 7
    assert mask.dtype == torch.bool
    assert mask.tolist() == 4 * [[False, True, True]]
    assert more["ids"].tolist() == 4 * [[0, 1, 1]]


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (
            (torch.zeros(4, 2), torch.zeros(3, 3)),
            r"a tensor 1 of shape \(3, 3\) for 4 items: every tensor needs one row",
        ),
        ({"x": torch.zeros(4, 2), "t": torch.tensor(0.5)}, r"a tensor t of shape \(\) for 4 items"),
        (([1, 2], "text"), r"net is called with no tensors, but with list, str"),
        ((torch.zeros(4, 2), object), r"an input of a network must be a tensor, a number or a text, nested or not, got"),
    ],
)
def test_inputs_that_have_no_rows_are_refused(inputs, said):
    with pytest.raises(UserError, match=said):
        check_rows(inputs, "net")


def test_a_fixed_tensor_among_the_inputs_is_refused_before_training():
    class Fixed:
        def loss(self, network, batch):
            return F.cross_entropy(network(batch[0], torch.eye(10)), batch[1])

    class Mixed(nn.Linear):
        def forward(self, x, matrix):
            return super().forward(x @ matrix)

    with pytest.raises(UserError, match=r"Mixed is called with a tensor 1 of shape \(10, 10\) for 8 items"):
        ss.extract(Mixed(10, 3), points(), "magnitude", task=Fixed(), recipe=SHORT)


def test_labels_are_no_inputs_after_training():
    ids, mask, labels = torch.ones(3, 6).long(), torch.ones(3, 6).long(), torch.tensor([0, 1, 2])
    by_name = {"input_ids": ids, "attention_mask": mask, "labels": labels, "return_dict": True}
    assert list(without_labels(FromHub(), by_name)) == ["input_ids", "attention_mask", "return_dict"]
    assert len(without_labels(FromHub(), (ids, mask, labels))) == 2

    class Needed(nn.Linear):  # the outputs depend on them
        def forward(self, x, y=None):
            return super().forward(x if y is None else x + y)

    given = {"x": torch.randn(2, 3), "y": torch.randn(2, 3)}
    assert without_labels(Needed(3, 2), given) is given
    assert isinstance(without_labels(Needed(3, 2), (given["x"], torch.zeros(2, 3))), torch.Tensor)


def test_names_of_inputs():
    class Many(nn.Module):
        def forward(self, x, *others, flag=None, **more):
            return x

    x = torch.zeros(2, 1)
    assert input_names(Many(), x) == ["input"]
    assert input_names(Many(), (x, x, {"a": x})) == ["x", "input.1", "input.2.a"]
    assert input_names(Many(), {"x": x, "flag": None, "deep": [x, (x,)]}) == ["x", "deep.0", "deep.1.0"]


# Outputs


@dataclass
class Boxes:
    boxes: torch.Tensor
    loss: None = None


def test_the_tensors_in_an_output():
    a, b = torch.ones(2, 3), torch.zeros(2)
    assert list(outputs_in(a)) == list(outputs_in(Logits(a))) == list(outputs_in((a, b))) == ["logits"]
    assert list(outputs_in((a, b), every=True)) == ["0", "1"]
    assert list(outputs_in({"logits": a, "more": [b, a]}, every=True)) == ["logits", "more.0", "more.1"]
    assert list(outputs_in({"logits": a, "more": b})) == ["logits"]
    assert list(outputs_in({"kind": a, "loss": torch.tensor(1.0), "cache": None}, every=True)) == ["logits"]
    assert list(outputs_in(Boxes(a))) == ["logits"]
    assert outputs_in(Logits(a), every=True)["logits"] is a
    assert [tensor.shape for tensor in compared({"kind": a, "size": b, "index": b.long()})] == [(2, 3), (2,)]
    with pytest.raises(UserError, match=r"networks must return tensors to be compared .*returns a dict of str"):
        outputs_in({"a": "text"})


def test_a_small_output_beside_a_large_one_is_compared_by_itself():
    class Two(nn.Module):
        def __init__(self, small):
            super().__init__()
            self.small = small

        def forward(self, x):
            return {"large": 1e6 * x, "small": self.small * x}

    assert difference_between(Two(1.0), Two(2.0), torch.randn(3, 4)) == pytest.approx(1)


def test_channels_that_only_a_small_output_depends_on_are_found():
    """A softmax over channels: their number changes the second output, which is a millionth of the first."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 8), nn.Linear(4, 8), nn.Linear(8, 3)
            self.d = nn.Linear(8, 3)

        def forward(self, x):
            return 1e6 * self.c(self.a(x).relu()), 1e-3 * self.d(self.b(x).softmax(1))

    torch.manual_seed(0)
    found = couple(Two(), torch.randn(4, 4), every=True)
    assert [group.name for group in found.groups] == ["a.weight"]


def test_the_second_head_of_a_tuple_is_an_output_of_a_task_of_ones_own():
    """For a classifier the first is the logits; the channels that the others are may go."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 3)

        def forward(self, x):
            features = self.a(x).relu()
            return self.b(features), features

    net = Two()
    assert [group.name for group in couple(net, torch.randn(4, 4)).groups] == ["a.weight"]
    assert not couple(net, torch.randn(4, 4), every=True).groups


# Transformers with a padding mask


def padded(width=16):
    torch.manual_seed(0)
    tokens, padding = torch.randint(0, 20, (4, 6)), torch.arange(6) >= torch.tensor([[3], [6], [2], [4]])
    return Encoder(width).eval(), (tokens, padding)


def test_heads_are_removed_where_padding_is_skipped():
    net, inputs = padded()
    assert "layers.layers.0.self_attn.in_proj_weight" in [group.name for group in couple(net, inputs).groups]
    with torch.no_grad():
        net.layers.layers[0].self_attn.out_proj.weight[:, :8] = 0  # two heads of four
    small = compact(net, inputs)
    assert small.layers.layers[0].self_attn.num_heads == 2
    with torch.no_grad():
        torch.testing.assert_close(small(*inputs), net(*inputs))


def test_sparse_layers_where_padding_is_skipped():
    net, inputs = padded(64)
    with torch.no_grad():
        net.layers.layers[0].linear1.weight[:, ::2] = 0
    out, choices = sparsify(net, "csr", inputs, measure=False)
    assert [choice.layer for choice in choices] == ["layers.layers.0.linear1"]
    with torch.no_grad():
        torch.testing.assert_close(out(*inputs), net(*inputs))


@pytest.mark.skipif(torch.cuda.is_available(), reason="2:4 works here")
def test_two_of_four_weights_of_several_inputs_need_a_gpu(tmp_path):
    case = replace(NETWORKS["encoder"], make=lambda: Encoder(64, 64))
    subnet = extracted(case, extractor="magnitude", unit="2:4", density=0.5)
    with pytest.raises(UserError, match="2:4 needs an NVIDIA GPU with sparse tensor cores; for CPUs use csr or bsr"):
        export(subnet, "2:4", tmp_path / "file", seconds=0)


def test_operations_are_those_of_full_sequences():
    net, (tokens, padding) = padded()
    with torch.no_grad():
        assert all_macs(net, (tokens, padding)) == all_macs(net, (tokens, torch.zeros_like(padding)))
    assert all_macs(net, (tokens, padding))["layers.layers.0.linear1.weight"] == 6 * 16 * 32


@pytest.mark.long
def test_a_tagger_is_exported_though_the_fused_operation_returns_zeros_for_padding():
    class Tagger(Encoder):
        def forward(self, tokens, padding):
            return self.last(self.layers(self.words(tokens), src_key_padding_mask=padding))

    torch.manual_seed(0)
    net, (_, inputs) = Tagger().eval(), padded()
    runtime = OnnxNetwork(to_onnx(net, inputs), 1)
    assert difference_between(net, runtime, inputs) < 1e-5


def test_operations_of_attention_to_other_tokens():
    """5 queries of 8 numbers, 7 keys and values: 5 + 7 + 7 tokens through a third of the packed weight each."""

    class Cross(nn.Module):
        def __init__(self, **options):
            super().__init__()
            self.attention, self.last = nn.MultiheadAttention(8, 2, batch_first=True, **options), nn.Linear(8, 3)

        def forward(self, x, memory):
            return self.last(self.attention(x, memory, value=memory, need_weights=False)[0].mean(1))

    found = all_macs(Cross(), (torch.randn(2, 5, 8), torch.randn(2, 7, 8)))
    assert found["attention.in_proj_weight"] == 19 * 64
    assert found["attention.out_proj.weight"] == 5 * 64
    found = all_macs(Cross(kdim=4, vdim=4), (torch.randn(2, 5, 8), torch.randn(2, 7, 4)))
    assert [found[f"attention.{one}_proj_weight"] for one in "qkv"] == [5 * 64, 7 * 32, 7 * 32]


# Everything beside


OTHER = {"x": torch.randn(60, 2, generator=torch.Generator().manual_seed(0))}


def test_batch_norm_is_recalibrated_by_a_task_of_ones_own(tmp_path):
    case = NETWORKS["two heads"]
    subnet = extracted(case, **RUNS["channels"])
    with pytest.raises(UserError, match="the task of this run is not built in: pass it"):
        export(subnet, "compact", tmp_path / "file", data=case.data(), recalibrate=2, seconds=0)
    record = export(subnet, "compact", tmp_path / "file", data=case.data(), task=case.task(), recalibrate=2, seconds=0)
    assert record["recalibrated"] == 2
    assert record["val_loss"] == subnet.metrics["val_loss"]
    small = load_deployed(tmp_path / "file", case.network())
    assert not torch.equal(small.norm.running_mean, subnet.compact().norm.running_mean)
    with pytest.raises(UserError, match="task is only used to recalibrate batch norm"):
        export(subnet, "compact", tmp_path / "file", task=case.task())
    with pytest.raises(UserError, match=r"the loss of the task .* fails: KeyError: 'image'"):
        export(subnet, "compact", tmp_path / "file", data=OTHER, task=case.task(), recalibrate=2, seconds=0)


def test_data_that_does_not_fit_is_one_line():
    case = NETWORKS["two heads"]
    subnet = extracted(case, **RUNS["magnitude"])
    with pytest.raises(UserError, match=r"the loss of the task .* fails: KeyError: 'image'"):
        ss.evaluate(subnet, data=OTHER, task=BothLosses())
    with pytest.raises(UserError, match=r"TwoHeads does not accept the inputs image \(2, 3, 8, 8\) float32, words"):
        ss.evaluate(subnet, data={**images_and_words(), "image": torch.randn(60, 3, 8, 8)}, task=BothLosses())


@pytest.mark.parametrize("kind", ["noise", "corruptions"])
def test_noise_and_corruptions_are_of_classifiers_of_one_tensor(kind):
    for name, said in {
        "u-net": "accuracy under noise and corruptions needs the task classification, got .*:Pixels",
        "hub": "inputs that are one tensor in memory|images that are one tensor in memory",
        "recurrent": "noise is added to float inputs, and these are torch.int64|corruptions need uint8 images",
    }.items():
        case = NETWORKS[name]
        subnet = extracted(case, **RUNS["magnitude"])
        with pytest.raises(UserError, match=said):
            ss.evaluate(subnet, data=case.data(), task=case.task(), **{kind: True})


def test_gates_need_one_float_tensor():
    for name in ("two heads", "recurrent"):
        with pytest.raises(UserError, match="filters that each input chooses need a network whose input is one float tensor"):
            extracted(NETWORKS[name], extractor="fbs")
    net = make_dynamic(UNet(), (3, 8, 8))  # outputs are no (batch, classes)
    assert net(torch.randn(2, 3, 8, 8)).shape == (2, 2, 8, 8)


def test_normalisation_is_of_one_tensor(tmp_path):
    subnet = extracted(NETWORKS["pair"], **RUNS["gumbel"])
    with pytest.raises(UserError, match="normalise: this network does not take one tensor of images"):
        export(subnet, "onnx", tmp_path / "file", normalise=True)


def test_images_by_keyword_are_normalised_before(tmp_path):
    """The task passes an image by keyword, so what normalises it cannot be built in."""

    class ByKeyword:
        def loss(self, network, batch):
            return F.cross_entropy(network(input=batch[0]), batch[1])

    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    train = pictures().train
    data = (train.inputs.mul(30).clamp(0, 255).byte(), train.labels)
    subnet = ss.extract(net, data, "magnitude", density=0.5, task=ByKeyword(), recipe=SHORT)
    assert subnet.origin.mean is not None
    record = export(subnet, "onnx", tmp_path / "model.onnx", seconds=0)
    assert record["input"] == "input float32 (N, 1, 8, 8)"


def test_one_item_of_several_inputs_and_batch_norm():
    one = {key: images_and_words()[key][:1] for key in ("image", "words")}
    check_batch_norm(TwoHeads(), one, 1)  # 64 values a channel

    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, a, b):
            return self.norm(a + b)

    with pytest.raises(UserError, match=r"batch norm \(norm\) needs two or more values a channel"):
        check_batch_norm(Flat(), (torch.zeros(1, 3), torch.zeros(1, 3)), 1)


def test_onnx_runtime_is_timed_with_inputs_of_several_types():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.last = nn.Embedding(20, 4), nn.Linear(4, 2)

        def forward(self, words, weight):
            return self.last((self.words(words) * weight).sum(1))

    inputs = (torch.randint(0, 20, (3, 5)), torch.rand(3, 5, 1))
    runtime = OnnxNetwork(to_onnx(Scaled(), inputs), 1)
    assert latency(runtime, (), inputs=inputs, seconds=0).median > 0
    with pytest.raises(UserError, match=r"the ONNX model does not run at batch 3: .*weight"):
        runtime(inputs[0])


def test_what_onnx_cannot_do_is_one_line(tmp_path):
    class Chooses(nn.Module):
        def __init__(self):
            super().__init__()
            self.last = nn.Linear(10, 3)

        def forward(self, x):
            return self.last(x if x.sum() > 0 else -x)

    subnet = ss.extract(Chooses(), points(), "magnitude", recipe=SHORT)
    with pytest.raises(UserError, match=r"this network cannot be exported to ONNX: .*--to compact or state-dict") as caught:
        export(subnet, "onnx", tmp_path / "file", seconds=0)
    assert "\n" not in str(caught.value)


def test_the_outputs_of_other_formats_must_be_the_same(tmp_path):
    case = NETWORKS["pair"]
    subnet = extracted(case, **RUNS["magnitude"])
    wrong = replace(subnet, examples=(torch.full((8, 5), torch.nan), torch.zeros(8, 7)))
    with pytest.raises(RunError, match="not exported: the logits of state-dict differ"):
        export(wrong, "state-dict", tmp_path / "file", seconds=0)


def test_pixels_may_have_any_number_of_classes():
    """Outputs (N, classes, H, W)."""
    net = UNet(classes=5).eval()
    assert outputs_in(net(pixels()[0][:2]))["logits"].shape == (2, 5, 8, 8)


@pytest.mark.parametrize("name", ["two heads", "language", "hub", "hub, own loss"])
def test_predictions_in_several_batches_hold_all_items(name, monkeypatch):
    monkeypatch.setattr("subnet_search.tasks.Task.predicted_at_once", 25)
    case = NETWORKS[name]
    subnet, data = extracted(case, **RUNS["magnitude"]), case.data()
    inputs = {key: data[key] for key in subnet.origin.inputs(1) if key in data} if isinstance(data, dict) else data[0]
    found = ss.predict(subnet, inputs)
    if name == "hub":
        found = found.probabilities
    expected = outputs_in(call(subnet.network().eval(), inputs), every=True)
    assert {len(one) for one in expected.values()} == {60}
    for path, tensor in outputs_in(found, every=True).items():
        other = expected[path].softmax(1) if name == "hub" else expected[path]
        torch.testing.assert_close(tensor, other)
