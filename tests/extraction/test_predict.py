"""Predictions for new inputs, from Python and on the command line."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset
from toys import mlp, points

import subnet_search as ss
from subnet_search import UserError
from subnet_search.cli import main

RECIPE = ss.Recipe(epochs=1, batch_size=20, threads=1, device="cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Images of two classes by colour, and a subnetwork of them."""
    folder = tmp_path_factory.mktemp("predict")
    for place in range(24):
        name = ("blue", "red")[place % 2]
        (folder / "images" / name).mkdir(parents=True, exist_ok=True)
        colour = [(20, 20, 200 - place), (200 - place, 20, 20)][place % 2]
        Image.new("RGB", (12, 10), colour).save(folder / "images" / name / f"{place}.png")
    data = {"name": f"image_folder:{folder / 'images'}", "size": 8}
    subnet = ss.extract(
        "small_conv",
        data,
        "magnitude",
        density=0.5,
        recipe=ss.Recipe(epochs=20, batch_size=8, lr=0.02, threads=1, device="cpu"),
    )
    subnet.save(folder / "s.safetensors")
    return folder


def command(capsys, *words, code=0):
    with pytest.raises(SystemExit) as ended:
        main(["predict", *map(str, words)])
    out, err = capsys.readouterr()
    assert ended.value.code == code, err
    return err if code else out


def test_tensors():
    data = points(60)
    subnet = ss.extract(mlp(), data, "random", density=0.5, recipe=RECIPE)
    found = ss.predict(subnet, data.val.inputs, network=mlp())
    logits = subnet.on(mlp()).eval()(data.val.inputs)
    assert torch.equal(found.classes, logits.argmax(1))
    assert torch.allclose(found.probabilities, logits.softmax(1))
    assert found.names is None
    assert found.rows()[0] == {
        "class": int(logits[0].argmax()),
        "probability": pytest.approx(logits[0].softmax(0).max().item()),
    }
    same = ss.predict(subnet, data.val.inputs.double().numpy(), network=mlp())
    assert torch.equal(same.probabilities, found.probabilities)
    with pytest.raises(UserError, match=r"the inputs are float32 of shape \(2, 3\); the subnetwork takes float32 \(N, 10\)"):
        ss.predict(subnet, torch.zeros(2, 3), network=mlp())
    assert torch.equal(ss.predict(subnet, data.val.inputs).classes, found.classes)  # the network passed to extract is known
    with pytest.raises(UserError, match="the inputs contain NaN or infinite values"):
        ss.predict(subnet, data.val.inputs * float("nan"))
    assert torch.equal(subnet.network()[0].weight, subnet.on(mlp())[0].weight)
    with pytest.raises(UserError, match="split must be val or test, got 'tset'"):
        ss.evaluate(subnet, "tset", data=data)
    with pytest.raises(UserError, match="the inputs cannot be converted to a tensor"):
        ss.predict(subnet, object(), network=mlp())
    with pytest.raises(UserError, match=r"takes inputs of shape \(10,\), and no images: pass an \.npy or \.npz file"):
        ss.predict(subnet, "x.png", network=mlp())


def test_token_ids():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Embedding(9, 4), torch.nn.Flatten(), torch.nn.Linear(20, 2))
    ids, labels = torch.randint(0, 9, (60, 5)), torch.randint(0, 2, (60,))
    subnet = ss.extract(net, (ids, labels), "magnitude", density=0.5, recipe=RECIPE, task={"class_weights": "balanced"})
    assert len(ss.predict(subnet, ids[:7]).classes) == 7
    with pytest.raises(UserError, match=r"the subnetwork takes indices \(int64\), got torch\.float32"):
        ss.predict(subnet, ids.float())
    with pytest.raises(UserError, match=r"the network fails on these inputs: .*out of range"):
        ss.predict(subnet, ids + 1000)


def test_one_input_and_lists():
    data = points(60)
    subnet, inputs = ss.extract(mlp(), data, "random", density=0.5, recipe=RECIPE), data.val.inputs
    whole = ss.predict(subnet, inputs).probabilities
    assert torch.equal(ss.predict(subnet, list(inputs)).probabilities, whole)
    for one in (inputs[0], inputs[0].numpy(), inputs[0].tolist()):
        torch.testing.assert_close(ss.predict(subnet, one).probabilities, whole[:1])
    with pytest.raises(UserError, match=r"the inputs are a tuple; the subnetwork takes one tensor \(N, 10,?\), without labels"):
        ss.predict(subnet, (inputs, data.val.labels))
    with pytest.raises(UserError, match="the inputs are empty"):
        ss.predict(subnet, inputs[:0])
    with pytest.raises(UserError, match=r"uint8 up to 255, and those of the run were float32 from .* such as inputs / 255"):
        ss.predict(subnet, torch.full((2, 10), 255, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"the DataLoader shuffles, .*: pass its dataset"):
        ss.predict(subnet, DataLoader(TensorDataset(inputs), 4, shuffle=True))


def test_images_of_pillow_and_channels_that_are_last(folder):
    subnet, files = ss.Subnetwork.load(folder / "s.safetensors"), sorted((folder / "images" / "red").iterdir())
    images, wanted = [Image.open(file) for file in files], ss.predict(subnet, files).probabilities
    assert torch.equal(ss.predict(subnet, images).probabilities, wanted)
    torch.testing.assert_close(ss.predict(subnet, images[0]).probabilities, wanted[:1])
    with pytest.raises(
        UserError, match=r"of shape \(2, 8, 8, 3\); the subnetwork takes uint8 \(N, 3, 8, 8\); .*\(0, 3, 1, 2\)"
    ):
        ss.predict(subnet, torch.zeros(2, 8, 8, 3, dtype=torch.uint8))
    with pytest.raises(UserError, match=r"uint8 of shape \(8, 8, 3\); .* pass inputs\.permute\(2, 0, 1\)"):
        ss.predict(subnet, np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(UserError, match="image 0 has 32-bit pixels"):
        ss.predict(subnet, Image.new("F", (8, 8)))


def test_images(folder):
    subnet = ss.Subnetwork.load(folder / "s.safetensors")
    red = folder / "images" / "red" / "1.png"
    [row] = ss.predict(subnet, red).rows()
    assert row["class"] == "red"
    pixels = torch.tensor([200 - 1, 20, 20], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert torch.equal(ss.predict(subnet, pixels).probabilities, ss.predict(subnet, [red]).probabilities)
    with pytest.raises(UserError, match=r"takes uint8 images, which are normalised as in its run; got torch\.float32"):
        ss.predict(subnet, pixels.float())


def test_the_command(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    shown = command(capsys, "s.safetensors", "images/red/1.png", "images/blue")
    lines = shown.splitlines()
    assert lines[0].split() == ["input", "class", "probability"]
    assert lines[1].split()[:2] == ["images/red/1.png", "red"]
    assert len(lines) == 1 + 1 + 12
    assert all(line.split()[1] == "blue" for line in lines[2:])
    [row] = json.loads(command(capsys, "s.safetensors", "images/red/1.png", "--json"))
    assert (row["input"], row["class"], len(row["probabilities"])) == ("images/red/1.png", "red", 2)
    array = np.stack([np.asarray(Image.open("images/red/1.png").resize((8, 8)))] * 2)
    np.savez("more.npz", inputs=array)
    np.save("more.npy", array)
    for name in ("more.npz", "more.npy"):
        assert [row["class"] for row in json.loads(command(capsys, "s.safetensors", name, "--json"))] == ["red", "red"]


def test_mistakes_are_one_line(folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "empty").mkdir(exist_ok=True)
    (folder / "text.png").write_text("no image")
    np.savez("other.npz", x=np.zeros(3))
    for words, message in (
        (["none.safetensors", "images/red/1.png"], "no such subnetwork file: none.safetensors"),
        (["s.safetensors", "none.png"], "none.png is not a readable image: not a file"),
        (["s.safetensors", "text.png"], "text.png is not a readable image"),
        (["s.safetensors", "empty"], "empty has no images"),
        (["s.safetensors", "other.npz"], "other.npz has none of the arrays inputs, images, test_images; it holds x"),
        (["images", "images/red/1.png"], "images is a folder: name the file in it"),
        (["s.safetensors", "none.npz"], "none.npz is not a readable .npz file"),
    ):
        err = command(capsys, *words, code=2)
        assert message in err
        assert err.count("\n") == 1


class Two(torch.nn.Module):
    """Numbers and a mask, by keyword."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, numbers, mask):
        return self.layer(numbers * mask)


def test_nested_inputs(tmp_path, capsys):
    rng = torch.Generator().manual_seed(0)
    numbers, mask = torch.randn(60, 4, generator=rng), torch.rand(60, 4, generator=rng) < 0.5
    data = {"numbers": numbers, "mask": mask, "labels": (numbers[:, 0] > 0).long()}
    subnet = ss.extract(Two(), data, "snip", density=0.5, recipe=RECIPE, out=tmp_path / "run")
    given = {"numbers": numbers[:5].double().numpy(), "mask": mask[:5].int()}
    found = ss.predict(subnet, given)
    assert torch.allclose(found.probabilities, subnet.network().eval()(numbers[:5], mask[:5]).softmax(1))
    file = tmp_path / "run" / "subnetwork.safetensors"
    assert torch.equal(ss.predict(ss.Subnetwork.load(file), given, network=Two()).classes, found.classes)
    for wrong, message in (
        (numbers, "the inputs are one tensor; the subnetwork takes numbers, mask"),
        ({"numbers": numbers}, "the inputs are numbers; the subnetwork takes numbers, mask"),
        ({**given, "numbers": numbers[:5, 0]}, r"the inputs numbers have shape \(5,\); the subnetwork takes \('N', 4\)"),
        ({**given, "mask": numbers[:5]}, r"the subnetwork takes indices \(bool\), got torch\.float32"),
        ({**given, "numbers": numbers[:5] * float("inf")}, "the inputs numbers contain NaN or infinite values"),
        ({**given, "numbers": numbers}, "the inputs have different lengths: 60, 5"),
    ):
        with pytest.raises(UserError, match=message):
            ss.predict(subnet, wrong)
    with pytest.raises(UserError, match=r"the inputs are a dict; the subnetwork takes one tensor of \(10,\)"):
        ss.predict(ss.extract(mlp(), points(), "random", recipe=RECIPE), given)


class Own:
    def loss(self, network, batch):
        return sum(output.square().mean() for output in network(batch[0]))


class Outputs(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x), x[:, 0]


def make(**_):
    torch.manual_seed(0)
    return Outputs()


def test_a_task_of_your_own_gives_what_the_network_returns(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inputs = torch.randn(30, 4)
    subnet = ss.extract(make(), (inputs, inputs), "snip", task=Own(), recipe=RECIPE, out=tmp_path / "run")
    one, other = ss.predict(subnet, inputs)
    assert torch.equal(other, inputs[:, 0])
    assert one.shape == (30, 2)
    np.save("new.npy", inputs[:2].numpy())
    words = ["run/subnetwork.safetensors", "new.npy", "--network", "test_predict:make", "--json"]
    rows = json.loads(command(capsys, *words))
    assert [sorted(row) for row in rows] == [["0", "1", "input"]] * 2
    assert rows[0]["1"] == pytest.approx(inputs[0, 0].item())


def test_the_command_for_other_tasks(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = torch.randint(0, 255, (40, 1, 8, 8), dtype=torch.uint8)
    labels = {"multi_label": (images[:, 0, 0, :3] > 128).long(), "regression": images[:, 0, 0, 0].float()}
    np.save("new.npy", images[:2, 0].numpy())
    for task, keys in (("multi_label", {"labels", "probabilities"}), ("regression", {"value"})):
        recipe = ss.Recipe(epochs=1, threads=1, lr=1e-4, device="cpu")
        ss.extract("small_conv", (images, labels[task]), "snip", task=task, recipe=recipe, out=task)
        rows = json.loads(command(capsys, f"{task}/subnetwork.safetensors", "new.npy", "--json"))
        assert [set(row) for row in rows] == [{"input"} | keys] * 2
        assert len(command(capsys, f"{task}/subnetwork.safetensors", "new.npy").splitlines()) == 3
