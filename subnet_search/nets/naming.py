"""Layer names of published code for our reference networks, so that published checkpoints load.

Our names cannot change, since initial weights depend on them (`initial_weight`). Each mapping goes from our name of a
layer or block to its published name; the rest of a tensor's name, as `conv1.weight` in a block, is the same. A network has
one mapping for each published naming.
"""

from collections.abc import Mapping


def _residual(blocks: int, stages: int, head: str, shortcut: str = "shortcut") -> dict[str, str]:
    """conv1, bn1, layer1.0 to layerS.B, and the linear layer. shortcut: published name of a projection shortcut."""
    names = {"0": "conv1", "1": "bn1"}
    for stage in range(stages):
        for block in range(blocks):
            own = str(3 + stage * blocks + block)
            names |= {own: f"layer{stage + 1}.{block}", f"{own}.shortcut": f"layer{stage + 1}.{block}.{shortcut}"}
    return {**names, str(5 + stages * blocks): head}


def _vgg(features: str) -> dict[str, str]:
    """Convolutions and batch norms by their index among all layers, pooling included, and the linear layer."""
    stages = ((0, 2), (7, 2), (14, 4), (27, 4), (40, 4))  # index of the first layer, number of pairs
    places = [first + 3 * pair + layer for first, pairs in stages for pair in range(pairs) for layer in (0, 1)]
    return {**{str(place): f"{features}.{place}" for place in places}, "54": "classifier"}


PUBLIC_NAMES: Mapping[str, tuple[Mapping[str, str], ...]] = {
    "lenet_300_100": ({"1": "fc1", "3": "fc2", "5": "fc3"},),
    "lenet5": ({"0": "conv1", "3": "conv2", "7": "fc1", "9": "fc2"},),
    "small_conv": ({"0": "conv1", "2": "conv2", "5": "fc1", "7": "fc2"},),
    "conv2": ({"0": "conv1", "2": "conv2", "6": "fc1", "8": "fc2", "10": "fc3"},),
    "conv4": ({"0": "conv1", "2": "conv2", "5": "conv3", "7": "conv4", "11": "fc1", "13": "fc2", "15": "fc3"},),
    "conv6": (
        {"0": "conv1", "2": "conv2", "5": "conv3", "7": "conv4", "10": "conv5", "12": "conv6"}
        | {"16": "fc1", "18": "fc2", "20": "fc3"},
    ),
    # akamaster/pytorch_resnet_cifar10, and the same with torchvision's name of the linear layer
    "resnet20": (_residual(3, 3, "linear"), _residual(3, 3, "fc")),
    "resnet32": (_residual(5, 3, "linear"), _residual(5, 3, "fc")),
    "resnet56": (_residual(9, 3, "linear"), _residual(9, 3, "fc")),
    # kuangliu/pytorch-cifar, and torchvision's names over a 3x3 stem
    "resnet18": (_residual(2, 4, "linear"), _residual(2, 4, "fc", "downsample")),
    # GraSP and rethinking-network-pruning, and torchvision's names
    "vgg19": (_vgg("feature"), _vgg("features")),
}


def public_name(name: str, layers: Mapping[str, str]) -> str:
    """The published name of one of our tensors: its longest prefix in `layers` is replaced."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        if (head := ".".join(parts[:length])) in layers:
            return ".".join([layers[head], *parts[length:]])
    return name
