"""Networks by name: options of built-in ones, libraries, functions of the user's, trained weights, and a new last layer."""

import json
import random
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import subnet_search as ss
from subnet_search.core.errors import UserError
from subnet_search.nets import NetworkSpec, build, is_ours, network_names, read_state

BERT = {"vocab_size": 30, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
RECIPE = ss.Recipe(epochs=1, batch_size=20, device="cpu", threads=1)


def made(name, options=None, shape=(3, 32, 32), classes=7, task="classification", **settings):
    spec = NetworkSpec(name=name, options=options or {}, **settings).resolve(None, task)
    state = read_state(Path(spec.state)) if spec.state else None
    return build(spec, shape, classes, 0, state)


def refused(*args, **settings):
    with pytest.raises(UserError) as caught:
        made(*args, **settings)
    return str(caught.value)


@pytest.fixture
def factories(tmp_path, monkeypatch):
    (tmp_path / "nets_here.py").write_text(
        "from torch import nn\n"
        "def plain(): return nn.Linear(4, 2)\n"
        "def counted(num_classes): return nn.Linear(4, num_classes)\n"
        "def shaped(shape, num_classes=3): return nn.Linear(shape[0], num_classes)\n"
        "def anything(**options): return nn.Linear(4, options['num_classes'])\n"
        "def needs(width): return nn.Linear(4, width)\n"
        "def trained():\n"
        "    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1000))\n"
        "    nn.init.constant_(net[0].weight, 0.5)\n"
        "    return net\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)


def test_random_numbers_of_a_module_do_not_change_the_network_that_is_made_when_it_is_imported(tmp_path, monkeypatch):
    drawing = "import random\nimport numpy\nimport torch\n"
    drawing += "torch.manual_seed(3)\ntorch.randn(2)\nnumpy.random.seed(3)\nrandom.seed(3)\n"
    (tmp_path / "nets_seeding.py").write_text(f"{drawing}def net(): return torch.nn.Linear(4, 2)\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = random.getstate(), np.random.get_state()[1].tolist()
    first, again = (made("nets_seeding:net", shape=(4,), classes=2, init="keep") for _ in range(2))
    assert torch.equal(first.weight, again.weight)
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


@pytest.mark.parametrize("name", network_names())
def test_options_of_built_in_networks(name):
    small = {"width": 0.1, "norm": "group", "activation": "silu"}
    net = made(name, small).eval()
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    kinds = {type(module) for module in net.modules()}
    assert nn.GroupNorm in kinds
    assert not {nn.ReLU, nn.BatchNorm2d, nn.BatchNorm1d} & kinds
    for norm in ("none", "batch", "layer"):
        assert made(name, {"width": 0.1, "norm": norm})(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_the_defaults_are_the_networks_as_they_were():
    assert sum(p.numel() for p in made("lenet5", shape=(1, 28, 28), classes=10).parameters()) == 1_256_080
    assert [name for name, _ in made("resnet20", classes=10).named_parameters()][:3] == ["0.weight", "1.weight", "1.bias"]
    assert "activation" not in repr(made("resnet20", classes=10))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet20", {"activaton": "relu"}, "unknown option of resnet20 'activaton': did you mean 'activation'?"),
        ("resnet20", {"activation": "rleu"}, "unknown activation 'rleu': did you mean 'relu'"),
        ("conv2", {"norm": "instance"}, "unknown norm 'instance'"),
        ("conv2", {"width": 0}, "width is a factor above 0, got 0"),
        ("conv2", {"width": "2"}, "width is a factor above 0, got '2'"),
        ("nets_here:plain", {"depth": 2}, "unknown option of nets_here:plain 'depth'"),
        ("nets_here:needs", {}, "nets_here:needs needs the argument 'width': set network.options.width"),
        ("nets_hree:plain", {}, "No module named 'nets_hree'; start the command in the folder that contains it"),
    ],
)
def test_mistakes_in_options_are_one_line(name, options, message, factories):
    assert message in refused(name, options)


def test_a_factory_gets_what_its_signature_has(factories):
    assert made("nets_here:plain", shape=(4,)).out_features == 2
    assert made("nets_here:counted", shape=(4,)).out_features == 7
    assert (made("nets_here:shaped", shape=(4,)).in_features, made("nets_here:shaped", shape=(4,)).out_features) == (4, 7)
    assert made("nets_here:anything", shape=(4,)).out_features == 7
    assert made("nets_here:counted", {"num_classes": 3}, shape=(4,)).out_features == 3
    assert "and this data has no number of classes" in refused("nets_here:counted", classes=None)
    assert "and this data has no single shape" in refused("nets_here:shaped", shape=())


def test_a_new_head(factories, tmp_path):
    net = made("nets_here:trained", shape=(4,), new_head=True)
    assert net[2].out_features == 7
    assert bool((net[0].weight == 0.5).all())
    assert torch.equal(net[2].weight, made("nets_here:trained", shape=(4,), new_head="2")[2].weight)
    assert "unknown layer of Sequential '3' (network.new_head): valid: 0, 2" in refused("nets_here:trained", new_head="3")
    assert "network.new_head needs trained weights" in refused("resnet20", new_head=True)

    torch.save(made("resnet20", {"width": 0.25}, classes=10).state_dict(), tmp_path / "ten.pt")
    state = {"state": str(tmp_path / "ten.pt")}
    assert refused("resnet20", {"width": 0.25}, **state).endswith("network.new_head: true replaces the last layer")
    again = made("resnet20", {"width": 0.25}, new_head=True, **state)
    assert (again[14].out_features, again[0].weight.equal(torch.load(state["state"])["0.weight"])) == (7, True)
    other = made("resnet20", {"width": 0.25}, classes=10, new_head=True, **state)  # as many classes, and other ones
    assert not other[14].weight.equal(torch.load(state["state"])["14.weight"])


def test_a_new_head_of_a_module():
    data = torch.randn(60, 4), torch.randint(0, 3, (60,))
    net = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 1000))
    subnet = ss.extract(net, data, "magnitude", density=0.5, new_head=True, recipe=RECIPE)
    assert subnet.network()[2].out_features == 3
    assert net[2].out_features == 1000
    with pytest.raises(UserError, match="no linear layer or convolution"):
        ss.extract(nn.Sequential(nn.LayerNorm(4)), data, "magnitude", new_head=True, recipe=RECIPE)


def test_a_checkpoint_of_which_a_part_fits(tmp_path, caplog):
    torch.save(made("resnet20", classes=10).state_dict(), tmp_path / "20.pt")
    state = {"state": str(tmp_path / "20.pt")}
    message = refused("resnet32", classes=10, **state)
    assert "of its 157 tensors missing" in message
    assert re.search(r"network.partial: true loads the \d+ tensors that fit$", message)
    assert made("resnet32", classes=10, partial=True, **state)[3].conv1.weight.equal(
        torch.load(state["state"])["3.conv1.weight"]
    )
    numbers = re.search(r"(\d+) of its (\d+) .* file's (\d+); .* kept in (\d+) .* the file are (\d+)", caplog.text).groups()
    loaded, own, stored, kept, unused = map(int, numbers)
    assert (own, stored) == tuple(len(made(name, classes=10).state_dict()) for name in ("resnet32", "resnet20"))
    assert (loaded + kept, loaded + unused) == (own, stored)


def test_a_file_of_which_only_a_buffer_fits_is_of_another_network(tmp_path):
    torch.save({"1.running_mean": torch.ones(16), "x.weight": torch.ones(2, 2)}, tmp_path / "a.pt")
    message = refused("resnet20", classes=10, state=str(tmp_path / "a.pt"), partial=True)
    assert "fits resnet20: the file has 2 tensors ('1.running_mean', 'x.weight'), the network 116 tensors ('0." in message


@pytest.mark.parametrize(
    ("function", "hint"),
    [
        ("a(classes=3)", "set network.options.classes=10"),
        ("a(width=8, n_out=3)", "set network.options.n_out=10"),
        ("a(dropout=0.0)", "give the function an argument called num_classes, to which this number is passed"),
        ("a()", "give the function an argument called num_classes"),
        ("a(num_classes)", "gets this number as num_classes, unless network.options sets another"),
        ("a(**settings)", "gets this number as num_classes, unless"),
    ],
)
@pytest.mark.parametrize("task", ["classification", "multi_label"])
def test_how_a_function_gets_the_number_of_outputs(tmp_path, monkeypatch, function, hint, task):
    name = f"outputs_{abs(hash((function, task)))}"
    (tmp_path / f"{name}.py").write_text(f"from torch import nn\ndef {function}: return nn.Linear(4, 3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    labels = torch.arange(40) % 10
    labels = labels if task == "classification" else nn.functional.one_hot(labels)
    with pytest.raises(UserError) as caught:
        ss.extract(f"{name}:a", (torch.randn(40, 4), labels), "random", task=task, recipe=RECIPE)
    assert hint in str(caught.value)


def test_a_needed_argument_that_is_the_number_of_classes(tmp_path, monkeypatch):
    (tmp_path / "needs_labels.py").write_text("from torch import nn\ndef a(num_labels): return nn.Linear(4, num_labels)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "set network.options.num_labels=7; the number of classes is passed only to" in refused("needs_labels:a")


def test_timm():
    pytest.importorskip("timm")
    assert is_ours("timm:resnet10t")
    options = {"img_size": 8, "patch_size": 4, "embed_dim": 24, "depth": 1, "num_heads": 2}
    assert made("timm:vit_tiny_patch16_224", options, shape=(1, 8, 8))(torch.randn(2, 1, 8, 8)).shape == (2, 7)
    assert "unknown timm network 'resnet10tt': did you mean 'resnet10t'" in refused("timm:resnet10tt")
    assert "timm:resnet10t does not accept" in refused("timm:resnet10t", {"img_sze": 8})


def test_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    net = made("hf:bert", BERT, shape=())
    assert net(input_ids=torch.ones(2, 5, dtype=torch.long)).logits.shape == (2, 7)
    causal = made("hf:gpt2", {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 9}, shape=(), task="language_modeling")
    assert type(causal).__name__ == "GPT2LMHeadModel"
    assert "unknown option of hf:bert 'hiden_size': did you mean 'hidden_size'" in refused("hf:bert", {"hiden_size": 8})
    assert "unknown transformers model type 'brt'" in refused("hf:brt")
    assert "unknown class of transformers 'BertForTokn'" in refused("hf:bert", {**BERT, "class": "BertForTokn"})
    tokens = made("hf:bert", {**BERT, "class": "BertForTokenClassification"}, shape=())
    assert tokens(input_ids=torch.ones(2, 5, dtype=torch.long)).logits.shape == (2, 5, 7)

    transformers.BertForSequenceClassification(transformers.BertConfig(**BERT, num_labels=3)).save_pretrained(tmp_path / "b")
    folder = {"shape": (), "classes": 3}
    spec = NetworkSpec(name=f"hf:{tmp_path}/b").resolve(None)
    assert (spec.name, spec.init, spec.options["hidden_size"]) == ("hf:bert", "keep", 16)
    assert not is_ours(f"hf:{tmp_path}/b")
    loaded = made(f"hf:{tmp_path}/b", **folder)
    stored = transformers.BertForSequenceClassification.from_pretrained(tmp_path / "b")
    assert loaded.classifier.weight.equal(stored.classifier.weight)
    assert refused(f"hf:{tmp_path}/b", shape=(), classes=4).endswith("network.new_head: true replaces the last layer")
    assert made(f"hf:{tmp_path}/b", shape=(), classes=4, new_head=True).classifier.out_features == 4
    transformers.BertModel(transformers.BertConfig(**BERT)).save_pretrained(tmp_path / "base")  # without a head
    base = made(f"hf:{tmp_path}/base", partial=True, **folder)
    assert base.bert.encoder.layer[0].intermediate.dense.weight.equal(
        transformers.BertModel.from_pretrained(tmp_path / "base").encoder.layer[0].intermediate.dense.weight
    )
    assert "has no config.json" in refused(f"hf:{tmp_path}/nothing")
    (tmp_path / "b" / "config.json").write_text(json.dumps({"model_type": "none of these"}))
    assert "cannot read" in refused(f"hf:{tmp_path}/b", **folder)


def test_tied_embeddings_are_stored_once(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=9)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt")
    net = made(f"hf:{tmp_path}/gpt", shape=(), classes=9, task="language_modeling")
    assert net.lm_head.weight is net.transformer.wte.weight


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (nn.Linear(4, 2).half(), "weights of Linear are float16, the data is float32: pass net.float()"),
        (nn.Linear(4, 2).double(), "weights of Linear are float64"),
        (nn.Linear(4, 2, device="meta"), "on the device meta, which holds no values"),
        (nn.Linear, "network is a torch.nn.Module or a name, got .*Linear.*: call it"),
        (3, "network is a torch.nn.Module or a name, got int"),
    ],
)
def test_modules_that_cannot_be_trained(net, message):
    with pytest.raises(UserError, match=message):
        ss.extract(net, (torch.randn(60, 4), torch.randint(0, 2, (60,))), "magnitude", density=0.5, recipe=RECIPE)
