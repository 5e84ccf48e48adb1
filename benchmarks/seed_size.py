"""Size of a file that stores an untrained subnetwork as masks and a seed, half of the weights kept at random.

`dense` is the network's state (float32), `values` the file with the kept weights in it. Target: at most 1.1 bits a
prunable weight and 20 kB (1 kB = 1000 bytes).
"""

import tempfile
from pathlib import Path

import torch
from timing import Measured

import subnet_search as ss


def main(quick: bool = False) -> list[dict[str, object]]:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 32, 32), dtype=torch.uint8, generator=rng)
    cifar = (images, torch.arange(40) % 10)
    rows: list[dict[str, object]] = []
    for name in ["lenet5", "conv2"] if quick else ["lenet5", "conv2", "conv6", "resnet18"]:
        data = "digits" if name == "lenet5" else cifar
        recipe = ss.Recipe(epochs=0, device="cpu")
        subnet = ss.extract(name, data, "random", density=0.5, recipe=recipe)
        with tempfile.TemporaryDirectory() as folder:
            seed, values = (subnet.save(Path(folder) / form, form) for form in ("seed", "values"))
            assert ss.Subnetwork.load(Path(folder) / "seed").sha256 == subnet.sha256
        weights, dense = subnet.masks.numel, subnet.dense_bytes()
        bits = 8 * seed / weights
        rows.append(
            {
                "network": name,
                "prunable weights": f"{weights:,}",
                "dense, kB": f"{dense / 1000:,.1f}",
                "values, kB": f"{values / 1000:,.1f}",
                "seed, kB": f"{seed / 1000:,.1f}",
                "bits a weight": Measured(bits, bits, bits, "lower", f"{bits:.3f}"),
                "dense / seed": f"{dense / seed:.1f}",
                "target": "met" if seed <= 1.1 * weights / 8 + 20_000 else "missed",
            }
        )
    return rows
