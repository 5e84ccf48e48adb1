"""Networks of linear layers at 95 % sparsity, as `export --to csr` writes them, against dense ones: one thread.

Weights are drawn and dropped at random over all layers (nothing is learned: only the pattern counts). Each layer is sparse
or dense, as was faster at batch 16 (`sparse layers`). Medians of interleaved passes. `torch`'s own way, F.linear with a
CSR weight, is there for comparison. Targets: at batch 16 at least 3 times as fast as dense, and a file of at most 0.2 of
the dense one.
"""

import itertools
import tempfile
from functools import partial
from pathlib import Path

import torch
from timing import THREADS, Measured, medians, verdict
from torch import Tensor, nn

from subnet_search import Recipe, extract
from subnet_search.deploy.exported_network import Deployed
from subnet_search.deploy.sparse import sparsify

NETS = {"784-1024-1024-10": (784, 1024, 1024, 10), "3072-4096-4096-10": (3072, 4096, 4096, 10)}
BATCHES = (1, 16, 256)


def main(quick: bool = False) -> list[dict[str, object]]:
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            return [row for name in list(NETS)[: 1 if quick else None] for row in rows(name, 3 if quick else 30)]
    finally:
        torch.set_num_threads(THREADS)


def mlp(widths: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def rows(name: str, rounds: int) -> list[dict[str, object]]:
    widths = NETS[name]
    net = mlp(widths)
    data = torch.randn(64, widths[0]), torch.arange(64) % widths[-1]
    with torch.enable_grad():
        subnet = extract(net, data, "random", density=0.05, recipe=Recipe(epochs=0, device="cpu"))
    masked = subnet.on(net).eval()
    small, choices = sparsify(masked, "csr", torch.randn(16, widths[0]), threads=1)
    with tempfile.TemporaryDirectory() as folder:
        size = Deployed.of(small, masked, subnet.origin, "csr", {}).save(Path(folder) / "net.safetensors")
    made, share = [], size / subnet.dense_bytes()
    for batch in BATCHES:
        x = torch.randn(batch, widths[0])
        contenders = {"dense": net, "masked": masked, "ours": small, "torch": partial(plain, masked)}
        took = medians({key: partial(contender, x) for key, contender in contenders.items()}, rounds)
        faster = took.ratio("dense", "ours", "higher")
        made.append(
            {
                "network": name,
                "batch": batch,
                "dense, ms": f"{1000 * took['dense']:.3f}",
                "masked, ms": f"{1000 * took['masked']:.3f}",
                "csr, ms": f"{1000 * took['ours']:.3f}",
                "speedup": faster,
                "target": verdict(faster, ">=", 3.0) if batch == 16 else "",
                "with F.linear": f"{took['dense'] / took['torch']:.2f}",
                "sparse layers": f"{sum(choice.kept != 'dense' for choice in choices)} of {len(choices)}",
                "file / dense": Measured(share, share, share, "lower", f"{share:.3f}"),
                "target ": verdict(share, "<=", 0.2) if batch == 16 else "",
            }
        )
    return made


CSR: dict[int, Tensor] = {}


def plain(net: nn.Module, x: Tensor) -> Tensor:
    """As one would write it with torch: F.linear with sparse weights."""
    for layer in net:
        if isinstance(layer, nn.Linear):
            weight = CSR.setdefault(id(layer), layer.weight.to_sparse_csr())
            x = nn.functional.linear(x, weight, layer.bias)
        else:
            x = layer(x)
    return x
