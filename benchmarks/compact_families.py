"""Channels to half of the operations, in the smallest network of each family of timm and torchvision that
Torch-Pruning's examples cover, and in small networks of transformers. None is trained or downloaded.

Needs the extras `timm` and `hf`. Kept are the channels, heads and norm groups of largest mean magnitude, the same fraction
of each group, until half of the operations are left. What begins as a constant is drawn at random, as in `compact`.
`in groups` is the share of the outputs of all layers that can be removed. `operations` and `parameters` are of the dense
network and compact / dense; more than 0.50 is left where too few channels can be removed. `ms` is the processor time of one
input with one thread, medians of interleaved rounds. `difference` is the largest between the logits of the compact and the
masked network, relative to the largest. Target: at most 1e-5. `kept whole` is the most frequent reason beside the
outputs, with the number of groups. A network has three minutes.

Each row is measured in a separate process and kept in results/compact_families.part until all are there, so that a run that
was interrupted continues.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from compact import OUTPUTS, calibrate, size
from records import circumstances
from speed import timed
from timing import verdict
from torch import Tensor, nn

from subnet_search.core.errors import RunError, UserError
from subnet_search.evaluation import layer_macs
from subnet_search.nets import left_whole, logits_of, prunable
from subnet_search.structure.channel_groups import Coupling, couple
from subnet_search.structure.compact import compact, difference_between
from subnet_search.structure.units_of_network import _prices
from subnet_search.topology.channels import Channels

PART = Path(__file__).with_name("results") / "compact_families.part"
SECONDS = 180
TORCHVISION = [
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_x_400mf",
    "regnet_y_400mf",
    "resnet18",
    "resnext50_32x4d",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11",
    "vit_b_32",
    "wide_resnet50_2",
    "segmentation.fcn_resnet50",
    "segmentation.deeplabv3_mobilenet_v3_large",
    "segmentation.lraspp_mobilenet_v3_large",
    "detection.ssdlite320_mobilenet_v3_large",
]
TIMM = [
    "vit_tiny_patch16_224",
    "deit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnext_atto",
    "convnextv2_atto",
    "resnet10t",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small_035",
    "efficientnet_lite0",
    "regnetx_002",
    "regnety_002",
    "repvgg_a0",
    "mobileone_s0",
    "ghostnet_050",
    "lcnet_035",
    "tinynet_e",
    "mnasnet_small",
    "mixer_s32_224",
    "resmlp_12_224",
    "gmlp_ti16_224",
    "poolformer_s12",
    "levit_128s",
    "mobilevit_xxs",
    "mobilevitv2_050",
    "edgenext_xx_small",
    "xcit_nano_12_p16_224",
    "pvt_v2_b0",
    "pit_ti_224",
    "cait_xxs24_224",
    "crossvit_tiny_240",
    "convmixer_768_32",
    "eva02_tiny_patch14_224",
    "deit3_small_patch16_224",
    "starnet_s050",
    "repvit_m0_9",
    "efficientvit_m0",
    "efficientvit_b0",
    "fastvit_t8",
    "efficientformer_l1",
    "tiny_vit_5m_224",
    "resnest14d",
    "res2net50_14w_8s",
    "seresnext26d_32x4d",
    "bat_resnext26ts",
    "botnet26t_256",
    "halonet26t",
    "skresnet18",
    "rexnet_100",
    "selecsls42",
    "hardcorenas_a",
    "mixnet_s",
    "gernet_s",
    "dla46_c",
    "cs3darknet_s",
    "cspresnet50",
    "darknet17",
    "densenet121",
    "vgg11",
    "vovnet39a",
    "ese_vovnet19b_slim",
    "hgnet_tiny",
    "hrnet_w18_small",
    "dpn48b",
    "xception41",
    "inception_v3",
    "resnetv2_50",
    "nf_resnet26",
    "nfnet_l0",
    "caformer_s18",
    "convformer_s18",
    "visformer_tiny",
    "twins_pcpvt_small",
    "coat_lite_tiny",
    "convit_tiny",
    "beit_base_patch16_224",
    "davit_tiny",
    "focalnet_tiny_srf",
    "gcvit_xxtiny",
    "maxvit_rmlp_pico_rw_256",
    "mvitv2_tiny",
    "nest_tiny",
    "sequencer2d_s",
    "tnt_s_patch16_224",
    "volo_d1_224",
]
HF = ("bert", "distilbert", "vit", "swin", "gpt2", "llama")
COLUMNS = (
    "network",
    "input",
    "in groups",
    "M operations",
    "operations",
    "M parameters",
    "parameters",
    "dense, ms",
    "compact, ms",
    "difference",
    "target",
    "kept whole",
)


def main(quick: bool = False) -> list[dict[str, object]]:
    every = [f"{where}:{name}" for where, names in (("hf", HF), ("torchvision", TORCHVISION), ("timm", TIMM)) for name in names]
    versions = circumstances()["versions"]
    kept = [json.loads(line) for line in PART.read_text().splitlines()] if PART.exists() else []
    rows = {row["network"]: row for run, row in kept if run == versions}
    for name in ["hf:bert", "torchvision:resnet18", "timm:resnet10t"] if quick else every:
        if name not in rows or quick:
            rows[name] = apart(name)
            print(name, rows[name]["operations"], rows[name]["kept whole"], file=sys.stderr, flush=True)
            if not quick:
                with PART.open("a") as file:
                    file.write(json.dumps([versions, rows[name]]) + "\n")
    PART.unlink(missing_ok=True)
    return [rows[name] for name in every if name in rows]


def apart(name: str) -> dict[str, object]:
    """The row of a network, measured in a separate process."""
    try:
        made = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return without(name, f"not within {SECONDS} s")
    if made.returncode:
        return without(name, (made.stderr.strip().splitlines() or [f"exit code {made.returncode}"])[-1])
    return json.loads(made.stdout.splitlines()[-1])


def without(name: str, why: str) -> dict[str, object]:
    return dict.fromkeys(COLUMNS, "") | {"network": name, "kept whole": why.replace("|", "/")[:300]}


def row(name: str) -> dict[str, object]:
    torch.manual_seed(0)
    net, example = network(name)
    varied(net)
    if example.is_floating_point() and "detection" not in name:  # which are trained with targets
        calibrate(net, example)
    try:
        coupling = couple(net, example)
        share = halved(net, coupling, example)
        small = compact(net, example, coupling)
    except (UserError, RunError) as error:
        return without(name, str(error))
    difference = difference_between(net, small, example)
    reasons = Counter(reason for reason in coupling.kept_whole.values() if reason != OUTPUTS).most_common(1)
    before, after = (operations(one, example) for one in (net, small))
    plain = {"dense": Logits(net).eval(), "compact": Logits(small).eval()}
    with torch.no_grad():
        took = timed(plain, example, 1, 15)
    cells = (
        name,
        "x".join(map(str, example.shape[1:])),
        f"{share:.0%}",
        f"{before / 1e6:.1f}",
        f"{after / before:.2f}",
        f"{size(net) / 1e6:.2f}",
        f"{size(small) / size(net):.2f}",
        f"{1000 * took['dense']:.2f}",
        f"{1000 * took['compact']:.2f}",
        f"{difference:.1e}",
        verdict(difference, "<=", 1e-5),
        "; ".join(f"{count}: {reason}" for reason, count in reasons),
    )
    return dict(zip(COLUMNS, cells, strict=True))


class Logits(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> object:
        return logits_of(self.net(x))


def network(name: str) -> tuple[nn.Module, Tensor]:
    """An untrained network in evaluation mode, and two inputs as small as it takes."""
    where, _, name = name.partition(":")
    if where == "hf":
        return from_hf(name)
    if where == "timm":
        import timm

        net = timm.create_model(name, num_classes=10).eval()
        config = net.default_cfg
        fixed, full = config.get("fixed_input_size", False), config["input_size"][-1]
    else:
        import torchvision

        kind, _, short = name.rpartition(".")
        make: Callable[..., nn.Module] = getattr(torchvision.models, kind) if kind else torchvision.models
        options: dict[str, object] = {"init_weights": True} if short in ("googlenet", "inception_v3") else {}
        if kind:
            options = {"weights_backbone": None, "weights": None}
        net = getattr(make, short)(**options).eval()
        fixed, full = short.startswith(("vit", "maxvit", "inception")), 299 if short == "inception_v3" else 224
    for pixels in [full] if fixed else [96, full]:
        example = torch.randn(2, 3, pixels, pixels)
        try:
            with torch.no_grad():
                net(example)
            return net, example
        except Exception:  # sizes that do not fit
            if pixels == full:
                raise
    raise AssertionError


def from_hf(name: str) -> tuple[nn.Module, Tensor]:
    """A small network of transformers for a sequence of tokens or an image."""
    import transformers as hf

    small = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
    tokens = torch.randint(1, 200, (2, 16))
    match name:
        case "bert":
            return hf.BertForSequenceClassification(hf.BertConfig(vocab_size=200, num_labels=5, **small)).eval(), tokens
        case "distilbert":
            config = hf.DistilBertConfig(vocab_size=200, dim=64, n_layers=2, n_heads=4, hidden_dim=128, num_labels=5)
            return hf.DistilBertForSequenceClassification(config).eval(), tokens
        case "gpt2":
            return hf.GPT2LMHeadModel(
                hf.GPT2Config(vocab_size=200, n_embd=64, n_layer=2, n_head=4, use_cache=False)
            ).eval(), tokens
        case "llama":
            config = hf.LlamaConfig(vocab_size=200, num_key_value_heads=2, tie_word_embeddings=True, use_cache=False, **small)
            return hf.LlamaForCausalLM(config).eval(), tokens
        case "vit":
            net = hf.ViTForImageClassification(hf.ViTConfig(image_size=32, patch_size=8, num_labels=5, **small))
        case _:
            net = hf.SwinForImageClassification(
                hf.SwinConfig(
                    image_size=32, patch_size=2, embed_dim=32, depths=[2, 2], num_heads=[2, 4], window_size=4, num_labels=5
                )
            )
    return net.eval(), torch.randn(2, 3, 32, 32)


@torch.no_grad()
def varied(net: nn.Module) -> None:
    """Draw what begins as a constant at random, so that every layer matters."""
    rng = torch.Generator().manual_seed(0)
    for parameter in net.parameters():
        first = float(parameter.reshape(-1)[0])
        if bool((parameter == first).all()):
            noise = torch.randn(parameter.shape, generator=rng)
            parameter.copy_(noise.abs() + 0.5 if first else 0.1 * noise)


@torch.no_grad()
def halved(net: nn.Module, coupling: Coupling, example: Tensor) -> float:
    """Zero channels until half of the operations are left. Returns the share of all layers' outputs that are in groups."""
    weights = prunable(net)
    shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
    groups = [group for group in coupling.groups if all(one.tensor in shapes for one in group.slices if one.reads)]
    prices, whole = _prices(net, shapes, tuple(example.shape[1:]), "flops", example)
    units = Channels(shapes, groups, 1, prices, whole)
    masks = units.keep(units.pool_magnitude(weights), 0.5, "uniform")
    for name, mask in units.expand(masks).items():
        weights[name].mul_(mask)
    inside = sum(one.index.numel() for group in groups for one in group.slices if not one.reads and one.tensor in shapes)
    return inside / sum(shape[0] for shape in shapes.values())


def operations(net: nn.Module, example: Tensor) -> float:
    """Multiply-accumulates of all layers for one input."""
    weights = prunable(net)
    parameters = dict(net.named_parameters())
    names = {name: tuple(parameters[name].shape) for name in (*weights, *left_whole(net, weights))}
    return float(sum(layer_macs(net, names, tuple(example.shape[1:]), example).values()))


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(json.dumps(row(sys.argv[1])))
