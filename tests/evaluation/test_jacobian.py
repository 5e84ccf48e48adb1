"""The mean singular value of the Jacobian, of networks whose Jacobian is known."""

import json

import pytest
import torch
from torch import nn
from toys import conv_bn, mlp, pictures, points

import subnet_search as ss
from subnet_search.cli import main
from subnet_search.core.errors import RunError, UserError
from subnet_search.evaluation.isometry import BATCH, jacobians, mean_singular_value, singular_values


def linear(*rows):
    layer = nn.Linear(len(rows[0]), len(rows), bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
    return layer


def test_orthogonal_weights_have_exactly_one():
    net = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5)), nn.Linear(8, 3)).double()
    for layer in net:
        nn.init.orthogonal_(layer.weight)
    inputs = torch.randn(7, 8, dtype=torch.float64)
    assert mean_singular_value(net, [inputs]) == pytest.approx(1, abs=1e-12)
    net = net.float()
    assert mean_singular_value(net, [inputs.float()]) == pytest.approx(1, abs=1e-6)
    assert mean_singular_value(net, [inputs.float()], double=True) == pytest.approx(1, abs=1e-6)  # of rounded weights
    assert net[0].weight.dtype == torch.float32


def test_a_linear_network_has_the_singular_values_of_its_product():
    net = nn.Sequential(linear([3.0, 0.0], [0.0, 1.0]), linear([0.0, 2.0], [1.0, 0.0]))  # [[0, 2], [3, 0]]
    inputs = torch.randn(4, 2)
    assert jacobians(net, inputs).tolist() == [[[0, 2], [3, 0]]] * 4
    assert singular_values(net, inputs).tolist() == [[3, 2]] * 4
    assert mean_singular_value(net, [inputs]) == 2.5
    assert mean_singular_value(net, [inputs], double=True) == 2.5


def test_each_input_has_its_own():
    """ReLU passes both neurons of the first input, one of the second, and none of the third."""
    net = nn.Sequential(linear([2.0, 0.0], [0.0, 1.0]), nn.ReLU())
    inputs = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    assert singular_values(net, inputs).tolist() == [[2, 1], [2, 0], [0, 0]]
    assert mean_singular_value(net, [inputs]) == pytest.approx(5 / 6)
    assert mean_singular_value(net, [inputs[:1], inputs[1:]]) == pytest.approx(5 / 6)


def test_it_is_the_derivative_that_torch_finds():
    """With batch norm in evaluation mode, for more inputs than are in memory together; nothing is changed."""
    net, inputs = conv_bn(), torch.randn(BATCH + 3, 1, 8, 8)
    net(inputs)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert net.training
    found = singular_values(net, inputs)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    net.eval()
    each = torch.stack([torch.func.jacrev(lambda x: net(x[None])[0])(x).flatten(1) for x in inputs])
    torch.testing.assert_close(found, torch.linalg.svdvals(each), rtol=1e-4, atol=1e-6)


class Two(nn.Module):
    """a + 2 b, with a count that is no float."""

    def forward(self, a, b, count):
        return {"logits": a + 2 * b, "count": count}


def test_several_inputs_are_joined():
    inputs = {"a": torch.randn(3, 2), "b": torch.randn(3, 2), "count": torch.ones(3, dtype=torch.long)}
    assert jacobians(Two(), inputs)[0].tolist() == [[1, 0, 2, 0], [0, 1, 0, 2]]
    assert mean_singular_value(Two(), [inputs]) == pytest.approx(5**0.5)


def test_an_lstm():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(3, 4, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0][:, -1]

    assert jacobians(Last(), torch.randn(2, 5, 3)).shape == (2, 4, 15)


@pytest.mark.parametrize(
    ("net", "inputs", "message"),
    [
        (
            nn.Embedding(5, 2),
            torch.tensor([[1, 2]]),
            r"isometry needs float inputs to differentiate by, and these are \(1, 2\)",
        ),
        (nn.Sequential(nn.Flatten(0)), torch.randn(2, 3), "the first dimension must be the 2 inputs"),
        (nn.Linear(2, 5000), torch.randn(2, 2), "5,000 outputs for each input are more than 4,096"),
    ],
)
def test_what_has_no_jacobian(net, inputs, message):
    with pytest.raises(UserError, match=message):
        jacobians(net, inputs)


class Failing(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, slope):
        raise RuntimeError("not implemented for sparse")


def test_layers_without_a_derivative():
    class Sparse(nn.Module):
        def forward(self, x):
            return Failing.apply(x)

    with pytest.raises(UserError, match="cannot be differentiated by its inputs: not implemented for sparse"):
        jacobians(Sparse(), torch.randn(2, 3))


def test_outputs_that_do_not_depend_on_inputs():
    class Constant(nn.Module):
        def forward(self, x):
            return x.detach()

    with pytest.raises(UserError, match="no gradient with respect to its inputs"):
        jacobians(Constant(), torch.randn(2, 3))
    with pytest.raises(RunError, match="not finite"):
        singular_values(linear([float("nan")]), torch.randn(2, 1))


# --- evaluate ---

NONE = ss.Recipe(epochs=0, device="cpu", threads=1)


def test_evaluate_measures_the_masked_and_the_dense_network():
    net, data = mlp(), points()
    subnet = ss.extract(net, data, "magnitude", density=0.1, recipe=NONE)
    assert not [key for key in ss.evaluate(subnet, data=data) if "isometry" in key]
    record = ss.evaluate(subnet, data=data, isometry=True)
    inputs = data.val.first(128)[0]
    assert record["isometry"] == pytest.approx(mean_singular_value(subnet.network(), [inputs]))
    assert record["dense_isometry"] == pytest.approx(mean_singular_value(net, [inputs]))
    assert record["isometry"] < record["dense_isometry"]
    untrained = ss.extract(net, data, "random", density=0.1, init="kaiming_normal", recipe=NONE)
    record = ss.evaluate(untrained, data=data, isometry=True)
    assert record["dense_isometry"] is None
    assert "no trained weights from before pruning are known" in record["dense_isometry_error"]


def test_images_are_normalised_as_in_training():
    data = pictures()
    subnet = ss.extract(conv_bn(), data, "magnitude", density=0.5, recipe=NONE)
    images = (data.val.first(128)[0].float() / 255 - data.mean.view(-1, 1, 1)) / data.std.view(-1, 1, 1)
    found = ss.evaluate(subnet, data=data, isometry=True)["isometry"]
    assert found == pytest.approx(mean_singular_value(subnet.network(), [images]), rel=1e-5)


def test_evaluate_reads_the_weights_that_the_run_started_from(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = {"data": {"name": "digits", "limit": 300}, "recipe": {"epochs": 0, "threads": 1, "device": "cpu"}}
    first = {**small, "network": "lenet5", "extractor": {"name": "random", "density": 1.0}}
    ss.run(ss.RunConfig.model_validate(first), "dense")
    network = {"name": "lenet5", "state": str(tmp_path / "dense/subnetwork.safetensors")}
    ss.run(
        ss.RunConfig.model_validate({**small, "network": network, "extractor": {"name": "magnitude", "density": 0.2}}), "run"
    )
    record = evaluated(capsys, "run/subnetwork.safetensors", "--json")
    dense = ss.Subnetwork.load("dense/subnetwork.safetensors")
    assert record["dense_isometry"] == ss.evaluate(dense, isometry=True)["isometry"] > record["isometry"]
    assert f"before pruning                       {record['dense_isometry']:.4g}" in evaluated(
        capsys, "run/subnetwork.safetensors"
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert "outside the current folder" in evaluated(capsys, "../run/subnetwork.safetensors", "--json")["dense_isometry_error"]


def evaluated(capsys, path, *words):
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", path, "--isometry", *words])
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    return json.loads(out) if "--json" in words else out


def test_token_ids_are_refused():
    tokens = torch.randint(0, 5, (60, 4))
    net = nn.Sequential(nn.Embedding(5, 3), nn.Flatten(), nn.Linear(12, 2))
    subnet = ss.extract(net, (tokens, tokens[:, 0] % 2), "magnitude", density=0.5, recipe=NONE)
    with pytest.raises(UserError, match="isometry needs float inputs"):
        ss.evaluate(subnet, data=(tokens, tokens[:, 0] % 2), isometry=True)
    recipe = ss.Recipe(epochs=1, device="cpu", threads=1, record_isometry=True)
    with pytest.raises(UserError, match="isometry needs float inputs"):
        ss.extract(net, (tokens, tokens[:, 0] % 2), "magnitude", density=0.5, recipe=recipe)
