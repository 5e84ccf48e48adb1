"""Channels really taken out: what is coupled to what, and networks that say the same with less."""

import pytest
import torch
from torch import nn

from subnet_search.deploy.compact import compact, difference_between
from subnet_search.deploy.coupling import couple
from subnet_search.errors import UserError
from subnet_search.nets import build, network_names, prunable
from subnet_search.nets.spec import NetworkSpec
from subnet_search.topology.channels import Channels


def lively(net):
    """Running statistics and biases that are not those of a beginning."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.running_mean.copy_(torch.randn(module.num_features, generator=rng))
                module.running_var.copy_(torch.rand(module.num_features, generator=rng) + 0.5)
                module.weight.copy_(torch.rand(module.num_features, generator=rng) + 0.5)
                module.bias.copy_(torch.randn(module.num_features, generator=rng))
    return net.eval()


@torch.no_grad()
def pruned(net, example, density=0.5, **options):
    """Half of the channels, by their magnitude, zero where they are computed and where they are read."""
    units = Channels({name: weight.shape for name, weight in prunable(net).items()}, couple(net, example).groups, **options)
    masks = units.keep(units.pool_magnitude(prunable(net)), density)
    for name, mask in units.expand(masks).items():
        prunable(net)[name].mul_(mask)
    return masks


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.norm, self.head = nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head(self.norm(x + self.b(self.a(x).relu())).relu().mean((2, 3)))


class Concatenated(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(10, 8, 1)
        self.head = nn.Linear(8 * 16, 4)

    def forward(self, x):
        return self.head(self.c(torch.cat([self.a(x), self.b(x)], 1)).relu().flatten(1))


class Squeezed(nn.Module):
    """Channels that are multiplied by what another branch makes of them."""

    def __init__(self):
        super().__init__()
        self.conv, self.down, self.up = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.head = nn.Conv2d(8, 5, 1)

    def forward(self, x):
        x = self.conv(x)
        return self.head(x * self.up(self.down(x.mean((2, 3), keepdim=True)).relu()).sigmoid()).mean((2, 3))


def depthwise():
    middle = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.PReLU(8))
    return nn.Sequential(middle, nn.Conv2d(8, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))


def grouped():
    return nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 4, 4)
    )


def transposed():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2), nn.ReLU(), nn.Flatten(), nn.Linear(54, 4))


CASES = {
    "residual": (Residual, {"stem.weight": 8, "a.weight": 6}),
    "concatenated": (Concatenated, {"a.weight": 4, "b.weight": 6, "c.weight": 8}),
    "squeezed": (Squeezed, {"conv.weight": 8, "down.weight": 4}),
    "depthwise": (depthwise, {"0.0.weight": 8, "1.weight": 6}),
    "grouped": (grouped, {"0.weight": 4, "2.weight": 6}),  # the same place in both of its groups
    "transposed": (transposed, {"0.weight": 8, "2.weight": 6}),
}


@pytest.mark.parametrize("name", CASES)
def test_what_is_coupled_goes_together(name):
    torch.manual_seed(0)
    make, expected = CASES[name]
    net, example = lively(make()), torch.randn(2, 3, 4, 4)
    found = {group.name: group.size for group in couple(net, example).groups}
    assert sorted(found.values()) == sorted(expected.values())
    assert found.keys() == expected.keys() or name in ("residual", "squeezed", "depthwise")  # whichever is first in a group
    masks = pruned(net, example)
    small = compact(net, example)
    assert difference_between(net, small, example) < 1e-5
    # As many numbers as the masks leave, and of each channel its bias and its statistics.
    units = Channels({n: w.shape for n, w in prunable(net).items()}, couple(net, example).groups)
    assert {n: w.numel() for n, w in prunable(small).items()} == units._kept(masks)
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("name", network_names())
def test_every_network_of_ours_at_half_its_channels(name):
    shape = (1, 28, 28) if name.startswith("lenet") else (3, 32, 32)
    net = lively(build(NetworkSpec(name=name).resolve(None), shape, 10, 0))
    example = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    pruned(net, example, round_to=16)
    small = compact(net, example)
    assert difference_between(net, small, example) < 1e-4
    assert sum(p.numel() for p in small.parameters()) < 0.65 * sum(p.numel() for p in net.parameters())


def test_what_is_left_is_plain_and_trains():
    net, example = lively(Residual()), torch.randn(2, 3, 4, 4)
    pruned(net, example)
    small = compact(net, example)
    assert {type(module) for module in small.modules()} == {type(module) for module in net.modules()}
    assert (small.a.in_channels, small.a.out_channels) == (small.stem.out_channels, small.b.in_channels)
    small.train()(example).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_the_network_itself_is_left_alone():
    net, example = Residual().train(), torch.randn(2, 3, 4, 4)
    net.stem.weight.requires_grad_(False)
    couple(net, example)
    assert net.training
    assert not net.stem.weight.requires_grad
    assert net.a.weight.requires_grad
    assert net.a.weight.grad is None


def test_channels_that_a_normalisation_mixes_are_kept_whole():
    net = nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4))
    found = couple(net, torch.randn(2, 3))
    assert [group.name for group in found.groups] == ["2.weight"]
    assert found.kept_whole == {
        "4.weight": "they are outputs of the network",
        "0.weight": "they pass through LayerNorm, whose channels cannot be removed",
    }


class Softmaxed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.b(self.a(x).softmax(1))


def test_channels_that_reach_the_output_by_another_way_are_found_out():
    found = couple(Softmaxed(), torch.randn(2, 3))
    assert found.groups == ()
    assert "its values reach the output by other ways" in found.kept_whole["a.weight"]


class Written(nn.Module):
    """A size written into its forward pass."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Linear(8 * 16, 4)

    def forward(self, x):
        return self.b(self.a(x).view(-1, 8 * 16))


def shared():
    net = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 2))
    net[2].weight = net[0].weight
    return net


class Twofold(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.b(self.a(x)), x


@pytest.mark.parametrize(
    ("net", "shape", "said"),
    [
        (shared(), (3,), "shares a weight between layers: 0.weight"),
        (Twofold(), (3,), "a network must return one tensor for its channels to be removed, not tuple"),
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), (5,), "the channels of this network cannot be traced: .*shapes"),
    ],
)
def test_networks_that_cannot_be_traced(net, shape, said):
    with pytest.raises(UserError, match=said):
        couple(net, torch.randn(2, *shape))


def test_a_size_that_is_written_into_the_forward_pass():
    net, example = Written(), torch.randn(2, 3, 4, 4)
    pruned(net, example)
    with pytest.raises(UserError, match="the smaller network does not run, its forward pass has a size written into it"):
        compact(net, example)


def test_nothing_to_take_out():
    with pytest.raises(UserError, match="there is no channel to take out: each is read by a weight that lives"):
        compact(Residual(), torch.randn(2, 3, 4, 4))


def test_a_dead_layer_is_no_network():
    net, example = Residual(), torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        net.b.weight.zero_()
    with pytest.raises(UserError, match=r"no weight reads any channel of a\.weight: the layer is dead"):
        compact(net, example)
