"""Published checkpoints: the forms that files have, the names that layers have in public, and the accuracy they had."""

import os
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import subnet_search as ss
from subnet_search.core.errors import UserError
from subnet_search.extraction.config_file import check
from subnet_search.extraction.extract import run
from subnet_search.nets import NetworkSpec, build, network_names, read_state
from subnet_search.nets.checkpoints import put_state
from subnet_search.nets.naming import PUBLIC_NAMES, public_name

CIFAR10, PRETRAINED = "SUBNET_SEARCH_CIFAR10", "SUBNET_SEARCH_PRETRAINED"
IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}


def made(name, seed=0):
    return build(NetworkSpec(name=name).resolve(None), (3, 32, 32), 10, seed)


def tensors(value):
    return {"weight": torch.full((3, 2), value), "bias": torch.zeros(3)}


# --- forms ---


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "epoch": 3, "best_prec1": 91.7, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}},
        lambda s: {"model": s, "ema": {"weight": torch.zeros(1)}},
        lambda s: {"ema": s, "step": 7},
        lambda s: {"model": {"state_dict": s, "config": "a"}},
        lambda s: {"ema": {"model": s}, "epoch": 1},
        lambda s: {"epoch": 1, "model_state_dict": s, "optimizer_state_dict": {"state": {}, "param_groups": []}},
    ],
    ids=["flat", "state_dict", "model", "ema", "model of state_dict", "ema of model", "model_state_dict"],
)
@pytest.mark.parametrize("prefixes", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model."])
def test_nested_and_with_prefixes(tmp_path, wrap, prefixes):
    wanted = tensors(5.0)
    torch.save(wrap(OrderedDict((prefixes + name, value) for name, value in wanted.items())), tmp_path / "a.th")
    net = nn.Linear(2, 3)
    put_state(net, read_state(tmp_path / "a.th"), "package.module:linear", "a.th")
    assert all(torch.equal(value, wanted[name]) for name, value in net.state_dict().items())


def test_of_two_state_dicts_none_is_chosen(tmp_path):
    torch.save({"net": tensors(1.0), "averaged": tensors(2.0)}, tmp_path / "a.pt")
    with pytest.raises(UserError, match=r"'net' is not a tensor but of type dict .*; save only net\.state_dict\(\)$"):
        read_state(tmp_path / "a.pt")


def test_a_file_of_torchscript(tmp_path, recwarn):
    torch.jit.trace(nn.Linear(2, 3), torch.ones(1, 2)).save(tmp_path / "a.pt")
    recwarn.clear()  # of torch.jit itself
    with pytest.raises(
        UserError, match=r"a\.pt is not a state dict but a file of TorchScript: .*save only net\.state_dict\(\)$"
    ):
        read_state(tmp_path / "a.pt")
    assert not recwarn.list


def test_a_prefix_of_the_network_itself_stays():
    net, wanted = nn.ModuleDict({"module": nn.Linear(2, 3)}), tensors(5.0)
    for prefix in ("module.", "module.module."):
        put_state(net, {prefix + name: value for name, value in wanted.items()}, "package.module:wrapped", "a.pt")
        assert torch.equal(net["module"].weight, wanted["weight"])


def test_a_prefix_of_some_names_is_part_of_them():
    state = {"module.weight": torch.ones(3, 2), "bias": torch.ones(3)}
    with pytest.raises(UserError, match=r"1 \('weight'\) of its 2 tensors missing; 1 \('module\.weight'\) in the file that"):
        put_state(nn.Linear(2, 3), state, "net", "a.pt")


def test_counters_of_batch_norm_may_be_missing():
    norm = nn.BatchNorm1d(3)
    put_state(norm, {name: torch.full((3,), 2.0) for name in ("weight", "bias", "running_mean", "running_var")}, "net", "a.pt")
    assert norm.running_var.tolist() == [2, 2, 2]
    with pytest.raises(UserError, match=r"1 \('running_var'\) of its 4 tensors missing"):
        put_state(norm, {name: torch.ones(3) for name in ("weight", "bias", "running_mean")}, "net", "a.pt")


# --- names ---


@pytest.mark.parametrize("name", network_names())
def test_every_reference_network_has_public_names(name):
    wanted = made(name, seed=1).state_dict()
    for layers in PUBLIC_NAMES[name]:
        public = {public_name(key, layers): value for key, value in wanted.items()}
        assert len(public) == len(wanted)
        assert not public.keys() & wanted.keys()
        net = made(name)
        put_state(net, public, name, "a.pt")
        assert all(torch.equal(value, wanted[key]) for key, value in net.state_dict().items())


class PublicBlock(nn.Module):
    """A block of akamaster/pytorch_resnet_cifar10, with option A."""

    def __init__(self, wide_in, wide, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(wide_in, wide, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(wide)
        self.conv2 = nn.Conv2d(wide, wide, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.more = wide - wide_in

    def forward(self, x):
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.more:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more // 2, self.more // 2))
        return F.relu(out + x)


class PublicResNet(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        rows = [[PublicBlock(i, o, s), *(PublicBlock(o, o, 1) for _ in range(blocks - 1))] for i, o, s in
                ((16, 16, 1), (16, 32, 2), (32, 64, 2))]  # fmt: skip
        self.layer1, self.layer2, self.layer3 = (nn.Sequential(*row) for row in rows)
        self.linear = nn.Linear(64, 10)

    def forward(self, x):
        x = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(F.avg_pool2d(x, x.shape[3]).flatten(1))


def public_resnet18():
    """torchvision's, with a stem for small images."""
    net = torchvision.models.resnet18(num_classes=10)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return net


class PublicVGG(nn.Module):
    """VGG-19 as in rethinking-network-pruning: batch norm, no biases, 2x2 average pooling at the end."""

    def __init__(self):
        super().__init__()
        cfg = [64, 64, "M", 128, 128, "M", *[256] * 4, "M", *[512] * 4, "M", *[512] * 4]
        self.feature = torchvision.models.vgg.make_layers(cfg, batch_norm=True)
        for module in self.feature:
            if isinstance(module, nn.Conv2d):
                module.bias = None
        self.classifier = nn.Linear(512, 10)

    def forward(self, x):
        return self.classifier(F.avg_pool2d(self.feature(x), 2).flatten(1))


@pytest.mark.parametrize(
    ("name", "public"),
    [
        ("resnet20", lambda: PublicResNet(3)),
        ("resnet32", lambda: PublicResNet(5)),
        ("resnet56", lambda: PublicResNet(9)),
        ("resnet18", public_resnet18),
        ("vgg19", PublicVGG),
    ],
)
def test_published_code_says_the_same(name, public, tmp_path):
    torch.manual_seed(0)
    theirs, ours = public(), made(name)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(0.5, 1.5), module.bias.data.normal_(), module.running_mean.normal_()
    torch.save({"state_dict": nn.DataParallel(theirs).state_dict(), "epoch": 200}, tmp_path / "checkpoint.pth")
    put_state(ours, read_state(tmp_path / "checkpoint.pth"), name, "checkpoint.pth")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-4)


def test_another_network_in_the_words_of_its_file(tmp_path):
    torch.save(nn.DataParallel(PublicResNet(5)).state_dict(), tmp_path / "resnet32.th")
    state = read_state(tmp_path / "resnet32.th")
    with pytest.raises(UserError, match=r"^a does not fit resnet20: 60 \('layer1\.3\.conv1\.weight', .*\) in the file that"):
        put_state(made("resnet20"), state, "resnet20", "a")
    with pytest.raises(UserError, match=r"^a does not fit resnet56: 120 \('layer1\.5\.conv1\.weight', .*\) of its 277 tensors"):
        put_state(made("resnet56"), state, "resnet56", "a")
    imagenet = torchvision.models.resnet18(num_classes=10).state_dict()
    with pytest.raises(
        UserError,
        match=r"'conv1\.weight' has shape \(64, 3, 7, 7\), in the network \(64, 3, 3, 3\); network.partial: true loads",
    ):
        put_state(made("resnet18"), imagenet, "resnet18", "a")


# --- the published files ---


@pytest.fixture
def published(tmp_path):
    """The record of a run that keeps every weight of a published file, on so many of CIFAR-10's test images."""
    for variable, what in ((CIFAR10, "an npz file of CIFAR-10"), (PRETRAINED, "the folder of the published files")):
        if not os.environ.get(variable):
            pytest.skip(f"{variable} does not name {what}")

    def record(name, file, items):
        with np.load(os.environ[CIFAR10]) as cifar:
            parts = {"train": 500, "test": items}
            arrays = {
                f"{part}_{kind}": cifar[f"{part}_{kind}"][:n] for part, n in parts.items() for kind in ("images", "labels")
            }
        np.savez(tmp_path / "cifar10.npz", **arrays)
        values = {
            "network": {"name": name, "state": str(Path(os.environ[PRETRAINED]) / file)},
            "data": {"name": f"npz:{tmp_path / 'cifar10.npz'}", **IMAGENET},
            "extractor": {"name": "magnitude", "density": 1.0},
            "recipe": {"epochs": 0, "threads": 1, "device": "cpu"},
        }
        return run(check(ss.RunConfig, values), tmp_path / "run").summary()

    return record


@pytest.mark.slow
@pytest.mark.parametrize(("images", "accuracy"), [(2_000, 0.9155), pytest.param(10_000, 0.9173, marks=pytest.mark.long)])
def test_resnet20_has_its_published_accuracy(published, images, accuracy):
    record = published("resnet20", "resnet20-12fca82f.th", images)
    assert record["test_accuracy"] == pytest.approx(accuracy, abs=0.001)
    assert {key: record["normalisation"][key] for key in IMAGENET} == IMAGENET


@pytest.mark.long
def test_resnet56_has_its_published_accuracy(published):
    """93.39 % of all 10,000 images, which take minutes, are 93.55 % of the first 2,000."""
    assert published("resnet56", "resnet56-4bfd9763.th", 2_000)["test_accuracy"] == pytest.approx(0.9355, abs=0.001)
