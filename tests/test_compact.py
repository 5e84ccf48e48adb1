"""Channels really taken out: what is coupled to what, and networks that say the same with less."""

import pytest
import torch
from torch import nn

from subnet_search.deploy.attention import FewerHeads, become, heads
from subnet_search.deploy.compact import compact, difference_between, shrunk
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


class Padded(nn.Module):
    """A shortcut that puts zeros on both sides of its channels."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.inner, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 12, 1), nn.Linear(12, 4)

    def forward(self, x):
        x = self.a(x).relu()
        x = nn.functional.pad(x, (0, 0, 0, 0, 2, 2)) + self.inner(self.b(x).relu())
        return self.head(x.mean((2, 3)))


def test_channels_that_are_padded_are_kept_whole():
    found = couple(Padded(), torch.randn(2, 3, 4, 4))
    assert [group.name for group in found.groups] == ["b.weight"]
    assert found.kept_whole["inner.weight"].startswith("zeros are put beside them")


def test_channels_that_are_shuffled_are_kept_whole():
    from torchvision.models import shufflenet_v2_x0_5

    # Nobody trained it, so in evaluation mode next to nothing of its inputs reaches its outputs: a test must be stronger.
    net, example = shufflenet_v2_x0_5(num_classes=10).eval(), torch.randn(2, 3, 64, 64)
    found = couple(net, example)
    names = {group.name for group in found.groups}
    assert names == {"conv1.0.weight", "conv5.0.weight"} | {
        name for name in dict(net.named_parameters()) if "branch2.3.w" in name
    }
    assert found.kept_whole["stage4.3.branch2.5.weight"].startswith("they are put in another order or cut in parts")
    pruned(lively(net), example)
    assert difference_between(net, compact(net, example), example) < 1e-5


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
    become(layer)
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
    assert found.kept_whole["a.in_proj_weight"].startswith("its values reach the output by other ways")
    groups, reasons = heads(nn.MultiheadAttention(4, 2, add_zero_attn=True))
    assert (groups, list(reasons)) == ([], ["in_proj_weight"])


class Branching(nn.Module):
    """Goes one way for bright inputs, and another for dark ones."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.head((self.a if x.mean() > 0 else self.b)(x).relu())


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
        (Branching(), (3,), r"the layers that run in this network depend on its inputs \(a, b not always\)"),
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
