"""Networks in which each input chooses its filters (`fbs`): what one image by itself is spared, and what that costs.

The first table times one image, one thread, networks whose weights and gates are random: the dense network, and the
same with gates. `MACs` is the dense network's over what these inputs chose on average, gates included. Times are of the
processor for that thread, medians of interleaved passes.

The second table is what accuracy it costs: three convolutions with batch norm on 10,000 images of Fashion-MNIST, 6 epochs,
three seeds, beside the same network dense and with channels dropped for all images alike (`l1_filters`) at about the same
multiply-accumulates. Test accuracy, mean (lowest to highest).
"""

import statistics

import torch
from speed import timed
from timing import THREADS, spread
from torch import nn

from subnet_search import Recipe, extract
from subnet_search.evaluation import cost
from subnet_search.evaluation.cost import chosen_macs
from subnet_search.nets import NetworkSpec, build, make_dynamic, opened, prunable, set_winners

CIFAR, IMAGENET = (3, 32, 32), (3, 224, 224)
NETS = {
    "resnet20": CIFAR,
    "resnet18": CIFAR,
    "vgg19": CIFAR,
    "torchvision:resnet18": IMAGENET,
    "torchvision:vgg11_bn": IMAGENET,
}
METHODS = {
    "dense": ("magnitude", {"density": 1.0}),
    "fbs, winners 0.7": ("fbs", {"winners": 0.7}),
    "fbs, winners 0.5": ("fbs", {"winners": 0.5}),
    "l1_filters, half the MACs": ("l1_filters", {"target": {"flops": 0.5}, "round_to": 1}),
    "l1_filters, a quarter": ("l1_filters", {"target": {"flops": 0.25}, "round_to": 1}),
}


def main(quick: bool = False) -> list[dict[str, object]]:
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            rows = [one_image(name, share, quick) for name in list(NETS)[: 1 if quick else None] for share in (0.5, 0.3)]
        return rows + [accuracy(name, quick) for name in list(METHODS)[: 2 if quick else None]]
    finally:
        torch.set_num_threads(THREADS)


def one_image(name: str, share: float, quick: bool) -> dict[str, object]:
    shape = NETS[name]
    torch.manual_seed(0)
    net = make_dynamic(build(NetworkSpec(name=name).resolve(None), shape, 10, 0), shape)
    set_winners(net, share)
    settle(net, shape)
    images = torch.randn(16, *shape, generator=torch.Generator().manual_seed(0))
    chosen = chosen_macs(net, torch.zeros(2, *shape), lambda: net(images))["kept_macs"]
    took = timed({"dense": opened(net).eval(), "gates": net}, images, 1, 3 if quick else 30)
    return {
        "network": name,
        "pixels": shape[-1],
        "winners": share,
        "dense, ms": f"{1000 * took['dense']:.2f}",
        "gates, ms": f"{1000 * took['gates']:.2f}",
        "speedup": took.ratio("dense", "gates", "higher"),
        "MACs": f"{cost(net, prunable(net), shape).macs / chosen:.2f}",
    }


def settle(net: nn.Module, shape: tuple[int, ...]) -> None:
    """Give the batch norms of an untrained network the statistics of random images."""
    for module in net.train().modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    for _ in range(2):
        net(torch.randn(8, *shape))
    net.eval()


def accuracy(name: str, quick: bool) -> dict[str, object]:
    method, more = METHODS[name]
    recipe = Recipe(
        epochs=1 if quick else 6,
        batch_size=128,
        lr=0.05,
        momentum=0.9,
        nesterov=False,
        weight_decay=5e-4,
        schedule="cosine",
        threads=1,
        device="cpu",
    )
    data = {"name": "fashion_mnist", "limit": 500 if quick else 10_000}
    found = [
        extract(three_layers(), data, method, recipe=recipe, seed=seed, init="kaiming_normal", **more).metrics
        for seed in range(1 if quick else 3)
    ]
    tests = [100 * metrics["test_accuracy"] for metrics in found]
    share = statistics.mean(metrics["kept_macs"] / metrics["macs"] for metrics in found)
    return {
        "method": name,
        "test accuracy, %": spread(statistics.mean(tests), tests, "higher"),
        "MACs of one image, of dense": f"{share:.2f}",
    }


def three_layers() -> nn.Module:
    def layer(inputs: int, filters: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters), nn.ReLU()]

    pool = nn.MaxPool2d(2)
    rest = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)
    return nn.Sequential(*layer(1, 32), pool, *layer(32, 64), pool, *layer(64, 64), *rest)
