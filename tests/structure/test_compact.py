"""Channels really taken out: what is coupled to what, and networks that say the same with less."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from subnet_search.core.errors import UserError
from subnet_search.nets import build, network_names, prunable
from subnet_search.nets.spec import NetworkSpec
from subnet_search.structure.attention_heads import FewerHeads, heads, use_fewer_heads
from subnet_search.structure.channel_groups import couple
from subnet_search.structure.compact import compact, difference_between
from subnet_search.structure.shrink import shrunk
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
def pruned(net, example, density=0.5, scope="global", **options):
    """Half of the channels, by their magnitude, zero where they are computed and where they are read."""
    units = Channels({name: weight.shape for name, weight in prunable(net).items()}, couple(net, example).groups, **options)
    masks = units.keep(units.pool_magnitude(prunable(net)), density, scope)
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


@pytest.mark.slow
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
    net.a.weight.grad = gradient = torch.ones_like(net.a.weight)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    couple(net, example)
    assert net.training
    assert not net.stem.weight.requires_grad
    assert net.a.weight.requires_grad
    assert net.a.weight.grad is gradient
    assert net.b.weight.grad is None
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())


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
    assert "they affect the output other than through" in found.kept_whole["a.weight"]


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


class Padded(nn.Module):
    """A shortcut that puts zeros on both sides of its channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.inner, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 12, 1), nn.Linear(12, 4)

    def forward(self, x):
        x = self.a(x).relu()
        x = nn.functional.pad(x, (0, 0, 0, 0, 2, 2)) + self.inner(self.b(x).relu())
        return self.head(x.mean((2, 3)))


def test_channels_beside_padded_zeros_are_kept_whole_where_their_number_is_fixed():
    net, example = Padded().eval(), torch.randn(2, 3, 4, 4)
    found = couple(net, example)
    assert [(group.name, group.size) for group in found.groups] == [("b.weight", 6), ("a.weight", 8)]
    assert found.kept_whole["inner.weight"].startswith("the forward pass contains a fixed size")
    pruned(net, example)
    assert difference_between(net, compact(net, example), example) < 1e-5


@pytest.mark.long
def test_channels_that_are_shuffled_are_kept_whole():
    from torchvision.models import shufflenet_v2_x0_5

    # Nobody trained it, so in evaluation mode next to nothing of its inputs reaches its outputs: a test must be stronger.
    net, example = shufflenet_v2_x0_5(num_classes=10).eval(), torch.randn(2, 3, 64, 64)
    found = couple(net, example)
    names = {group.name for group in found.groups}
    assert names == {"conv1.0.weight", "conv5.0.weight"} | {
        name for name in dict(net.named_parameters()) if "branch2.3.w" in name
    }
    assert found.kept_whole["stage4.3.branch2.5.weight"].startswith("they are reordered or split")
    pruned(lively(net), example)
    assert difference_between(net, compact(net, example), example) < 1e-5


@pytest.mark.slow
def test_small_images_in_a_deep_network():
    """One place is left of each image: by batch norm over two numbers, rounding alone would change what it says."""
    from torchvision.models import resnet50

    torch.manual_seed(0)
    found = couple(resnet50(num_classes=10), torch.randn(2, 3, 32, 32))
    assert (len(found.groups), found.kept_whole) == (37, {"fc.weight": "they are outputs of the network"})


class Attending(nn.Module):
    """Two layers of attention between embeddings of eight, and what it says of their mean."""

    def __init__(self, **options):
        super().__init__()
        self.embed, self.head = nn.Linear(3, 8), nn.Linear(8, 4)
        self.a = nn.MultiheadAttention(8, 4, **options)
        self.b = nn.MultiheadAttention(8, 2, **options)

    def forward(self, x):
        inputs, x = x, self.embed(x)
        for layer in (self.a, self.b):
            other = inputs if layer.kdim == 3 else x
            x = x + layer(x, other, other)[0]
        return self.head(x.mean(1))


class Encoding(nn.Module):
    """torch's own encoder, which reads the weights of its attention layers itself where it can."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True)
        self.embed, self.encoder, self.head = nn.Linear(3, 8), nn.TransformerEncoder(layer, 2), nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.encoder(self.embed(x)).mean(1))


def test_what_a_head_has_in_each_tensor():
    (group,), reasons = heads(nn.MultiheadAttention(4, 2))  # two heads of two; q, k and v are four rows each
    assert (group.name, group.size, reasons) == ("in_proj_weight", 2, {})
    both = [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]
    found = [(piece.tensor, piece.dim, piece.index.tolist(), piece.reads) for piece in group.slices]
    assert found == [
        ("in_proj_weight", 0, both, False),
        ("in_proj_bias", 0, both, False),
        ("out_proj.weight", 1, [[0, 1], [2, 3]], True),
    ]


@pytest.mark.parametrize(
    "options", [{}, {"batch_first": True}, {"bias": False}, {"dropout": 0.5}, {"kdim": 3, "vdim": 3}], ids=str
)
def test_attention_without_half_of_its_heads(options):
    torch.manual_seed(0)
    net, example = Attending(**options).eval(), torch.randn(2, 5, 3)
    pruned(net, example, scope="uniform")
    small = compact(net, example)
    assert difference_between(net, small, example) < 1e-5
    assert [(type(layer), layer.num_heads, layer.out_proj.in_features) for layer in (small.a, small.b)] == [
        (FewerHeads, 2, 4),
        (FewerHeads, 1, 4),
    ]
    assert small.state_dict().keys() == net.state_dict().keys()
    small.train()(example).sum().backward()
    assert all(parameter.grad is not None for parameter in small.parameters())
    # From the shapes alone, as a file is read.
    again = shrunk(net, {name: tuple(value.shape) for name, value in small.state_dict().items()})
    again.load_state_dict(small.state_dict())
    assert difference_between(small, again, example) == 0
    # What is smaller can be made smaller still.
    pruned(small.eval(), example, scope="uniform")
    smallest = compact(small, example)
    assert (smallest.a.num_heads, smallest.b.num_heads) == (1, 1)


def test_heads_of_torchs_own_encoder():
    torch.manual_seed(0)
    net, example = Encoding().eval(), torch.randn(2, 5, 3)
    masks = pruned(net, example, scope="uniform")
    assert {name: mask.numel() for name, mask in masks.items() if "self_attn" in name} == {
        f"encoder.layers.{index}.self_attn.in_proj_weight": 4 for index in range(2)
    }
    small = compact(net, example)
    assert {layer.self_attn.num_heads for layer in small.encoder.layers} == {2}
    assert difference_between(net, small, example) < 1e-5


def test_heads_of_a_vision_transformer():
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    net, example = VisionTransformer(16, 8, 2, 4, 16, 32, num_classes=5).eval(), torch.randn(2, 3, 16, 16)
    nn.init.normal_(net.heads.head.weight)  # zeros at first
    assert len(pruned(net, example, scope="uniform")) == 4  # two layers, each its heads and its hidden neurons
    small = compact(net, example)
    assert difference_between(net, small, example) < 1e-4
    assert {layer.self_attention.num_heads for layer in small.encoder.layers} == {2}


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "masks", [{"attn_mask": True}, {"key_padding_mask": True}, {"attn_mask": True, "key_padding_mask": True}]
)
def test_masks_of_attention(batch_first, masks):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 4, batch_first=batch_first).eval()
    x, other = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    given = {"attn_mask": torch.rand(3, 5) > 0.7, "key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2])}
    given["attn_mask"][:, 0] = False  # each has something to attend to
    given = {name: mask for name, mask in given.items() if name in masks}
    inputs = [t if batch_first else t.transpose(0, 1) for t in (x, other, other)]
    expected, _ = layer(*inputs, need_weights=False, **given)
    alone, _ = layer(x[0], other[0], other[0], need_weights=False)
    floats = {name: torch.zeros(mask.shape).masked_fill(mask, -torch.inf) for name, mask in given.items()}
    use_fewer_heads(layer)
    for form in (given, floats):
        found, nothing = layer(*inputs, **form)
        assert nothing is None
        assert torch.allclose(found, expected, atol=1e-6)
    assert torch.allclose(layer(x[0], other[0], other[0])[0], alone, atol=1e-6)


class Weighed(Attending):
    """Says where it attends to, over all heads."""

    def forward(self, x):
        x = self.embed(x)
        return self.a(x, x, x)[1].flatten(1)


def test_heads_that_cannot_be_removed():
    found = couple(Weighed(), torch.randn(2, 5, 3))
    assert [group.name for group in found.groups] == ["b.in_proj_weight"]
    assert found.kept_whole["a.in_proj_weight"].startswith("they affect the output other than through")
    groups, reasons = heads(nn.MultiheadAttention(4, 2, add_zero_attn=True))
    assert (groups, list(reasons)) == ([], ["in_proj_weight"])


class Branching(nn.Module):
    """Goes one way for bright inputs, and another for dark ones."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.head((self.a if x.mean() > 0 else self.b)(x).relu())


@pytest.mark.parametrize(
    ("net", "shape", "said"),
    [
        (shared(), (3,), "cannot remove channels: 0.weight is shared between layers"),
        (Branching(), (3,), r"the layers that run depend on its inputs \(a, b not always\)"),
        (nn.DataParallel(Residual()), (3, 4, 4), "cannot trace the channels of DataParallel: pass the original module"),
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), (5,), "cannot trace the channels of this network: .*shapes"),
    ],
)
def test_networks_that_cannot_be_traced(net, shape, said):
    with pytest.raises(UserError, match=said):
        couple(net, torch.randn(2, *shape))


class Cut(nn.Module):
    """Attention written by hand: heads are as wide as they were, whatever is left of them."""

    def __init__(self):
        super().__init__()
        self.embed, self.qkv, self.out = nn.Linear(3, 16), nn.Linear(16, 48), nn.Linear(16, 16)
        self.up, self.down, self.head = nn.Linear(16, 12), nn.Linear(12, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = self.embed(x)
        q, k, v = self.qkv(x).reshape(*x.shape[:2], 3, 4, 4).permute(2, 0, 3, 1, 4)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))
        return self.head((x + self.down(self.up(x).relu())).mean(1))


class Scaled(nn.Module):
    """Divides by how many channels there are."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(6, 4)

    def forward(self, x):
        x = self.a(x)
        return self.c(self.b(x / x.shape[1] ** 0.5).relu())


class Third(Scaled):
    """Knows its third channel."""

    def forward(self, x):
        x = self.a(x)
        x[:, 2] = 3
        return self.c(self.b(x).relu())


@pytest.mark.parametrize(
    ("make", "shape", "left", "whole", "why"),
    [
        (Written, (3, 4, 4), [], "a.weight", "the forward pass contains a fixed size"),
        (Cut, (5, 3), ["up.weight"], "down.weight", "a fixed size: without some of them, shape .* is invalid"),
        (Scaled, (3,), ["b.weight"], "a.weight", "they affect the output other than through"),
        (Third, (3,), ["b.weight"], "a.weight", "they affect the output other than through"),
    ],
    ids=["view", "attention", "scale", "third"],
)
def test_what_the_forward_pass_counts_is_kept_whole(make, shape, left, whole, why):
    torch.manual_seed(0)
    found = couple(make(), torch.randn(2, *shape))
    assert [group.name for group in found.groups] == left
    assert re.search(why, found.kept_whole[whole])


class Joined(nn.Module):
    """A concatenation that is flattened."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1), nn.Linear(14 * 4, 4)

    def forward(self, x):
        x = self.a(x).relu()
        return self.head(nn.functional.max_pool2d(torch.cat([x, self.b(x).relu()], 1), 2).flatten(1))


class Flat(nn.Module):
    """Flattened first, then normalised and put side by side."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.norm = nn.Conv1d(3, 8, 3), nn.Conv1d(3, 6, 3), nn.BatchNorm1d(14 * 4)
        self.head = nn.Linear(14 * 4, 4)

    def forward(self, x):
        x = x.flatten(2)[..., :6]
        return self.head(self.norm(torch.cat([self.a(x).flatten(1), self.b(x).view(len(x), -1)], 1)).relu())


def cubes():
    layers = [nn.Conv3d(1, 8, 2), nn.ReLU(), nn.Conv3d(8, 6, 2), nn.PReLU(), nn.Flatten(), nn.Linear(6 * 2 * 2, 4)]
    return nn.Sequential(nn.Unflatten(1, (1, 3)), *layers)


@pytest.mark.parametrize(
    ("make", "groups"),
    [(Joined, {"a.weight": 8, "b.weight": 6}), (Flat, {"a.weight": 8, "b.weight": 6}), (cubes, {"1.weight": 8, "3.weight": 6})],
)
def test_what_is_flattened(make, groups):
    torch.manual_seed(0)
    net, example = lively(make()), torch.randn(2, 3, 4, 4)
    assert {group.name: group.size for group in couple(net, example).groups} == groups
    masks = pruned(net, example)
    small = compact(net, example)
    assert difference_between(net, small, example) < 1e-5
    assert small.state_dict().keys() == net.state_dict().keys()
    assert sum(p.shape[0] for n, p in small.named_parameters() if n in groups) == masks.kept


class Gated(nn.Module):
    """Says where to look: one number for each place, beside all of its channels."""

    def __init__(self):
        super().__init__()
        self.a, self.gate, self.b, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 1, 1), nn.Conv2d(8, 6, 3), nn.Linear(6, 4)

    def forward(self, x):
        x = self.a(x).relu()
        return self.head(self.b(x * self.gate(x).sigmoid()).relu().mean((2, 3)))


class Mixture(nn.Module):
    """Attention to each time step, and two branches that are mixed."""

    def __init__(self):
        super().__init__()
        self.a, self.at, self.head = nn.Linear(4, 8), nn.Linear(8, 1), nn.Linear(6, 4)
        self.one, self.two, self.share = nn.Linear(8, 6), nn.Linear(8, 6), nn.Linear(8, 1)

    def forward(self, x):
        x = self.a(x.flatten(2)).relu()
        x = (x * self.at(x).softmax(1)).sum(1)
        share = self.share(x).sigmoid()
        return self.head((share * self.one(x) + (1 - share) * self.two(x)).relu())


@pytest.mark.parametrize(
    ("make", "shape", "groups", "alone"),
    [
        (Gated, (3, 4, 4), {"a.weight": 8, "b.weight": 6}, {"gate.weight"}),
        (Mixture, (3, 4), {"a.weight": 8, "two.weight": 6}, {"at.weight", "share.weight"}),
    ],
)
def test_one_number_beside_many_channels(make, shape, groups, alone):
    torch.manual_seed(0)
    net, example = make().eval(), torch.randn(2, *shape)
    found = couple(net, example)
    assert {group.name: group.size for group in found.groups} == groups
    assert {name for name, why in found.kept_whole.items() if why == "the group has only one channel"} == alone
    pruned(net, example, scope="uniform")
    small = compact(net, example)
    assert difference_between(net, small, example) < 1e-5
    assert sum(p.numel() for p in small.parameters()) < 0.6 * sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("track", [False, True])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, nn.InstanceNorm2d])
@pytest.mark.filterwarnings("ignore:input's size at dim=1 does not match num_features")  # which then is not used
def test_norms_of_each_channel(norm, affine, track):
    torch.manual_seed(0)
    middle = norm(8, affine=affine, track_running_stats=track)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), middle, nn.ReLU(), nn.Conv2d(8, 6, 2), nn.Flatten(), nn.Linear(6, 4)).eval()
    example = torch.randn(2, 3, 4, 4)
    pruned(net, example, scope="uniform")
    small = compact(net, example)
    assert difference_between(net, small, example) < 1e-5
    assert small[1].num_features == (4 if affine or track else 8)
    small.train()(example).sum().backward()


class Recurrent(nn.Module):
    """Features of each time step, a recurrent layer of them (or its cell, step by step), and neurons that read its state."""

    def __init__(self, layer):
        super().__init__()
        self.embed, self.layer, self.up, self.head = nn.Linear(3, 8), layer, nn.Linear(10, 12), nn.Linear(12, 4)

    def forward(self, x):
        x = self.embed(x).relu()
        if isinstance(self.layer, nn.RNNBase):
            x = self.layer(x)[0][:, -1]
        else:
            state = None
            for step in x.unbind(1):
                state = self.layer(step, state)
            x = state[0] if isinstance(state, tuple) else state
        return self.head(self.up(x).relu())


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM, nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_recurrent_layers_are_kept_whole_but_inputs_of_cells(kind):
    torch.manual_seed(0)
    layer = kind(8, 10, batch_first=True) if issubclass(kind, nn.RNNBase) else kind(8, 10)
    net, example = Recurrent(layer).eval(), torch.randn(2, 30, 3)
    found = couple(net, example)
    if issubclass(kind, nn.RNNBase):
        assert [(group.name, group.size) for group in found.groups] == [("up.weight", 12)]
        assert found.kept_whole["embed.weight"] == f"they pass through {kind.__name__}, whose channels cannot be removed"
    else:
        assert [(group.name, group.size) for group in found.groups] == [("up.weight", 12), ("embed.weight", 8)]
    assert "forward" not in vars(layer)
    pruned(net, example)
    assert difference_between(net, compact(net, example), example) < 1e-5


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm])
def test_weights_that_are_computed_are_kept_whole(norm):
    net = nn.Sequential(norm(nn.Linear(3, 8)), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 4)).eval()
    example = torch.randn(2, 3)
    found = couple(net, example)
    assert [group.name for group in found.groups] == ["2.weight"]
    assert found.kept_whole["0.weight"] == "their weight is computed from other tensors (as by weight norm or spectral norm)"
    pruned(net, example)
    assert difference_between(net, compact(net, example), example) < 1e-5


class Fourfold(nn.Module):
    """Another mask for each head, as with biases that fall with the distance."""

    def __init__(self):
        super().__init__()
        self.embed, self.a, self.head = nn.Linear(3, 8), nn.MultiheadAttention(8, 4, batch_first=True), nn.Linear(8, 4)
        self.up, self.down = nn.Linear(8, 6), nn.Linear(6, 8)

    def forward(self, x):
        x = self.embed(x)
        mask = -torch.arange(4.0).repeat(len(x)).view(-1, 1, 1).expand(-1, x.shape[1], x.shape[1])
        x = x + self.a(x, x, x, attn_mask=mask, need_weights=False)[0]
        return self.head((x + self.down(self.up(x).relu())).mean(1))


def test_heads_with_masks_of_their_own_are_kept_whole():
    found = couple(Fourfold(), torch.randn(2, 5, 3))
    assert [group.name for group in found.groups] == ["up.weight"]
    assert found.kept_whole["a.in_proj_weight"].startswith("the forward pass contains a fixed size")


def test_nothing_to_take_out():
    with pytest.raises(UserError, match="no channel can be removed: each is read by a nonzero weight"):
        compact(Residual(), torch.randn(2, 3, 4, 4))
    with pytest.raises(
        UserError, match=r"prunes whole channels\); 0\.weight: they pass through LayerNorm, whose channels cannot be removed$"
    ):
        compact(nn.Sequential(nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 4)), torch.randn(2, 3))


class Versioned(nn.Linear):
    """Loads a state that says its version alone, as torchvision's MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state, prefix, metadata, *others):
        assert metadata["version"] == 2
        super()._load_from_state_dict(state, prefix, metadata, *others)


def test_a_state_keeps_its_version():
    net, example = nn.Sequential(Versioned(3, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(2, 3)
    pruned(net, example)
    assert compact(net, example)[0].out_features == 4


def test_a_dead_layer_is_no_network():
    net, example = Residual(), torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        net.b.weight.zero_()
    with pytest.raises(UserError, match=r"no weight reads any channel of a\.weight, so the network cannot be exported"):
        compact(net, example)
