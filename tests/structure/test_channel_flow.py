"""Channels that are followed through the forward pass: norm groups, padded shortcuts, packed layers, heads, tied weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import subnet_search as ss
from subnet_search.deploy.export import export
from subnet_search.deploy.exported_network import Deployed, load_deployed
from subnet_search.nets import build, prunable
from subnet_search.nets.spec import NetworkSpec
from subnet_search.structure.channel_groups import couple
from subnet_search.structure.compact import compact, difference_between
from subnet_search.topology.channels import Channels

SHORT = ss.Recipe(epochs=1, batch_size=16, lr=0.05, threads=1, device="cpu")
LAYER_NORM = "they pass through LayerNorm, whose channels cannot be removed"


class Block(nn.Module):
    """A residual block with group norm; a convolution on the shortcut where the width changes."""

    def __init__(self, wide_in, wide, stride):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(wide_in, wide, 3, stride, 1, bias=False), nn.GroupNorm(4, wide)
        self.conv2, self.norm2 = nn.Conv2d(wide, wide, 3, 1, 1, bias=False), nn.GroupNorm(4, wide)
        self.shortcut = nn.Conv2d(wide_in, wide, 1, stride) if wide != wide_in else nn.Identity()

    def forward(self, x):
        out = self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))
        return (out + self.shortcut(x)).relu()


def resnet(groups=4):
    stem = [nn.Conv2d(3, 8, 3, padding=1), nn.GroupNorm(groups, 8), nn.ReLU()]
    return nn.Sequential(*stem, Block(8, 8, 1), Block(8, 16, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3))


class Packed(nn.Module):
    """Attention with one layer for queries, keys and values, as in timm."""

    def __init__(self, fixed=False):
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim, self.fixed = 4, 4, 16, fixed
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(out.reshape(b, n, c if self.fixed else self.attn_dim))


class Grouped(nn.Module):
    """Attention with fewer heads of keys and values than of queries."""

    def __init__(self, shared, repeat=False):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim, self.repeat = 4, shared, 4, repeat
        self.q, self.k, self.v = nn.Linear(16, 16), nn.Linear(16, 4 * shared), nn.Linear(16, 4 * shared)
        self.out = nn.Linear(16, 16, bias=False)

    def forward(self, x):
        heads = {"q": self.n_heads, "k": self.n_kv_heads, "v": self.n_kv_heads}
        q, k, v = (
            getattr(self, name)(x).view(*x.shape[:2], count, self.head_dim).transpose(1, 2) for name, count in heads.items()
        )
        if self.repeat:
            times = self.n_heads // self.n_kv_heads
            k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=not self.repeat)
        return self.out(out.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    def __init__(self, packed):
        super().__init__()
        self.packed = packed
        self.up = nn.Linear(16, 24 if packed else 12)
        self.gate = nn.Identity() if packed else nn.Linear(16, 12)
        self.down = nn.Linear(12, 16)

    def forward(self, x):
        gate, up = self.up(x).chunk(2, -1) if self.packed else (self.gate(x), self.up(x))
        return self.down(F.silu(gate) * up)


class Language(nn.Module):
    """Tokens, one layer on a residual stream with norms, and the next token; its embedding may be the output's weight."""

    def __init__(self, layer, norm=nn.LayerNorm, tied=False):
        super().__init__()
        self.embed, self.place = nn.Embedding(20, 16), nn.Parameter(torch.randn(1, 5, 16))
        self.norm1, self.layer, self.norm2, self.head = norm(16), layer, norm(16), nn.Linear(16, 20, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, x):
        x = self.embed(x) + self.place
        return self.head(self.norm2(x + self.layer(self.norm1(x))))


@torch.no_grad()
def halved(net, example):
    """The network with half of the channels of each group zero, and its compact form."""
    units = Channels({name: weight.shape for name, weight in prunable(net).items()}, couple(net, example).groups)
    masks = units.keep(units.pool_magnitude(prunable(net)), 0.5, "uniform")
    for name, mask in units.expand(masks).items():
        prunable(net)[name].mul_(mask)
    return compact(net, example)


TOKENS = torch.arange(10).view(2, 5)
CASES = {
    "packed qkv": (lambda: Language(Packed()), {"layer.qkv.weight": 4}, {"num_heads": 2, "attn_dim": 8, "head_dim": 4}),
    "shared by two": (lambda: Language(Grouped(2)), {"layer.q.weight": 2}, {"n_heads": 2, "n_kv_heads": 1, "head_dim": 4}),
    "repeated": (lambda: Language(Grouped(2, True)), {"layer.q.weight": 2}, {"n_heads": 2, "n_kv_heads": 1, "head_dim": 4}),
    "shared by all": (lambda: Language(Grouped(1)), {"layer.q.weight": 4}, {"n_heads": 2, "n_kv_heads": 1, "head_dim": 4}),
    "swiglu": (lambda: Language(SwiGLU(False)), {"layer.up.weight": 12}, {}),
    "packed swiglu": (lambda: Language(SwiGLU(True)), {"layer.up.weight": 12}, {}),
    "rms norm": (lambda: Language(SwiGLU(True), nn.RMSNorm), {"layer.up.weight": 12}, {}),
    "tied": (lambda: Language(SwiGLU(False), tied=True), {"layer.up.weight": 12}, {}),
}


@pytest.mark.parametrize("name", CASES)
def test_parts_of_transformers(name):
    torch.manual_seed(0)
    make, groups, counts = CASES[name]
    net = make().eval()
    assert {group.name: group.size for group in couple(net, TOKENS).groups} == groups
    small = halved(net, TOKENS)
    assert difference_between(net, small, TOKENS) < 1e-5
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
    assert counts.items() <= vars(small.layer).items()
    assert (small.head.weight is small.embed.weight) == (name == "tied")


def test_heads_of_a_fixed_size_go_as_a_whole():
    """Half of 32 channels are two heads of 8 too, of other channels; at their first weights that hardly shows."""
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    net = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes)).eval()
    tokens = {"input_ids": torch.randint(1, 50, (2, 12)), "attention_mask": torch.ones(2, 12, dtype=torch.long)}
    groups = {group.name.removeprefix("bert.encoder.layer.0."): group.size for group in couple(net, tokens).groups}
    assert groups["attention.self.query.weight"] == 4
    assert "attention.self.value.weight" not in groups


def test_heads_are_kept_whole_where_their_width_is_fixed():
    found = couple(Language(Packed(fixed=True)), TOKENS)
    assert found.groups == ()
    assert found.kept_whole["layer.qkv.weight"].startswith("the forward pass contains a fixed size")
    assert LAYER_NORM in found.kept_whole.values()


def test_built_in_residual_networks_lose_channels_of_the_stream():
    net, example = build(NetworkSpec(name="resnet20").resolve(None), (3, 32, 32), 10, 0).eval(), torch.randn(2, 3, 32, 32)
    sizes = {group.name: group.size for group in couple(net, example).groups}
    # New channels of a stage go in pairs, so that as many zeros are padded on each side.
    assert (sizes["0.weight"], sizes["6.conv2.weight"], sizes["9.conv2.weight"]) == (16, 8, 16)
    small = halved(net, example)
    assert [small[index].conv2.out_channels for index in (3, 6, 9)] == [8, 16, 32]
    assert difference_between(net, small, example) < 1e-5


def test_norm_groups_go_as_a_whole():
    torch.manual_seed(0)
    net, example = resnet().eval(), torch.randn(2, 3, 8, 8)
    found = couple(net, example)
    assert {group.name: group.size for group in found.groups} == {
        "0.weight": 4,
        "3.conv1.weight": 4,
        "4.conv1.weight": 4,
        "4.conv2.weight": 4,
    }
    small = halved(net, example)
    assert difference_between(net, small, example) < 1e-5
    assert [(m.num_groups, m.num_channels) for m in small.modules() if isinstance(m, nn.GroupNorm)] == [
        (2, 4),
        (2, 4),
        (2, 4),
        (2, 8),
        (2, 8),
    ]
    one = couple(resnet(groups=1), example).kept_whole
    assert one["0.weight"].startswith("they pass through GroupNorm")


def test_a_residual_network_with_group_norm_from_the_run_to_the_file(tmp_path):
    torch.manual_seed(0)
    net, data = resnet(), (torch.randn(48, 3, 8, 8), torch.arange(48) % 3)
    subnet = ss.extract(net, data, "l1_filters", density=0.5, recipe=SHORT)
    record = export(subnet, "compact", tmp_path / "small", network=net, seconds=0)
    small = load_deployed(tmp_path / "small", resnet())
    assert record["difference"] < 1e-5
    assert difference_between(subnet.on(net), small, data[0]) < 1e-5
    assert sum(p.numel() for p in small.parameters()) < 0.5 * sum(p.numel() for p in net.parameters())


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.norm, self.layer, self.head = nn.Linear(8, 16), nn.LayerNorm(16), Packed(), nn.Linear(16, 3)

    def forward(self, x):
        x = self.embed(x)
        return self.head((x + self.layer(self.norm(x))).mean(1))


def test_a_file_has_the_number_of_heads(tmp_path):
    torch.manual_seed(0)
    net, data = Tokens(), (torch.randn(48, 5, 8), torch.arange(48) % 3)
    subnet = ss.extract(net, data, "l1_filters", density=0.5, recipe=SHORT)
    export(subnet, "compact", tmp_path / "small", network=net, seconds=0)
    small = load_deployed(tmp_path / "small", Tokens())
    assert (small.layer.num_heads, small.layer.attn_dim, small.layer.head_dim) == (2, 8, 4)
    assert difference_between(subnet.on(net), small, data[0]) < 1e-5
    found = Deployed.load(tmp_path / "small")
    assert found.counts == {"layer.num_heads": 2, "layer.attn_dim": 8}
    wrong = Deployed(found.tensors, found.shapes, {}, found.origin, "compact", {}, False, {"layer.fixed": 2})
    with pytest.raises(ss.UserError, match=r"layer\.fixed is not a count of channels"):
        wrong.on(Tokens())
