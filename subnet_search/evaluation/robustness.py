"""How sturdy a classifier is: uniform noise on normalised images, and common corruptions.

Noise: Liebenwein, Baykal, Carter, Gifford & Rus 2021, "Lost in Pruning", arXiv:2103.03014. Networks of one accuracy
can differ in function; noise n ~ U(-eps, eps) shows it. Ours is one draw an image; the authors repeat 100 times.
Corruptions: Hendrycks & Dietterich 2019, arXiv:1903.12261. **These are kinds of CIFAR-10-C, computed here: not the
official files, so numbers cannot be put beside published ones.** Formulas and values are those of the authors'
`make_cifar_c.py` (pixels 0..1), but posterize, which is ours; random draws, the blur's edges and the JPEG encoder
differ, and we round to uint8 where they cut off. Kinds that need pictures or other libraries (frost, snow) are left out.

| kind           | severity         |   1  |   2  |   3  |   4  |   5  |
|----------------|------------------|------|------|------|------|------|
| gaussian_noise | deviation        | 0.04 | 0.06 | 0.08 | 0.09 | 0.10 |
| shot_noise     | photons at white | 500  | 250  | 100  | 75   | 50   |
| impulse_noise  | fraction hit     | 0.01 | 0.02 | 0.03 | 0.05 | 0.07 |
| speckle_noise  | deviation        | 0.06 | 0.10 | 0.12 | 0.16 | 0.20 |
| gaussian_blur  | deviation, pixels| 0.4  | 0.6  | 0.7  | 0.8  | 1.0  |
| brightness     | added to V (HSV) | 0.05 | 0.10 | 0.15 | 0.20 | 0.30 |
| contrast       | factor           | 0.75 | 0.5  | 0.4  | 0.3  | 0.15 |
| pixelate       | size factor      | 0.95 | 0.90 | 0.85 | 0.75 | 0.65 |
| jpeg           | quality          | 80   | 65   | 58   | 50   | 40   |
| posterize      | bits kept        | 6    | 5    | 4    | 3    | 2    |
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from subnet_search.data import Split, prepare
from subnet_search.errors import UserError, unknown
from subnet_search.seeds import generator

Forward = Callable[[Tensor], Tensor]
BATCH = 1000  # a constant, since how a random stream is cut into batches decides who gets which number


@torch.no_grad()
def noise_curve(
    forward: Forward,
    reference: Forward | None,
    split: Split,
    mean: Tensor | None,
    deviation: Tensor | None,
    levels: Sequence[float] = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Accuracy and distance from a reference network (the dense one, say) under uniform noise: a row a level.

    forward, reference: normalised inputs (N, ...) to logits (N, classes); the caller sets evaluation mode.
    levels: eps >= 0, in deviations of the data: noise comes after normalisation. Draws depend on `seed` and the
    level's place in `levels` alone. Each row has `level`, `accuracy` (fraction right), and, else None, `agreement`
    (fraction of equal predictions) and `distance` (mean L2 norm of the difference of the softmax outputs, 0 to 1.41).
    Raises UserError for a level below 0.
    """
    rows = []
    for index, level in enumerate(levels):
        if not level >= 0:
            raise UserError(f"a noise level must not be below 0, got {level:g}")
        rng = generator(seed, "noise", index, device=split.inputs.device)
        right, equal, distance = 0, 0, 0.0
        for inputs, labels in zip(split.inputs.split(BATCH), split.labels.split(BATCH), strict=True):
            clean = prepare(inputs, mean, deviation)
            noisy = clean + torch.empty_like(clean).uniform_(-1, 1, generator=rng).mul_(level)
            outputs = forward(noisy)
            right += int((outputs.argmax(1) == labels).sum())
            if reference is not None:
                others = reference(noisy)
                equal += int((outputs.argmax(1) == others.argmax(1)).sum())
                distance += float((outputs.double().softmax(1) - others.double().softmax(1)).norm(dim=1).sum())
        compared = {"agreement": equal / len(split), "distance": distance / len(split)} if reference is not None else {}
        rows.append({"level": level, "accuracy": right / len(split), "agreement": None, "distance": None, **compared})
    return rows


@torch.no_grad()
def corruption_table(
    forward: Forward,
    split: Split,
    mean: Tensor | None,
    deviation: Tensor | None,
    severities: Iterable[int] = (1, 2, 3, 4, 5),
    names: Iterable[str] | None = None,
) -> list[dict[str, Any]]:
    """Accuracy on corrupted images: a row (`corruption`, `severity`, `accuracy`) each. Draws are always the same.

    split: uint8 images (N, 1 or 3, H, W), at least 8x8; the rest as `noise_curve`. names: default, all.
    Raises UserError for other inputs, for a name that does not exist and for a severity that is not 1 to 5.
    """
    images, chosen, severities = split.inputs, list(names or CORRUPTIONS), list(severities)
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3) or min(images.shape[2:]) < 8:
        raise UserError(
            "corruptions need uint8 images (N, 1 or 3 channels, height and width from 8), "
            f"got {images.dtype} of shape {tuple(images.shape)}"
        )
    for name in chosen:
        if name not in CORRUPTIONS:
            raise unknown("corruption", name, CORRUPTIONS)
    if wrong := [severity for severity in severities if severity not in (1, 2, 3, 4, 5)]:
        raise UserError(f"a severity is a whole number from 1 to 5, got {wrong[0]!r}")
    rows = []
    for name in chosen:
        for severity in severities:
            right = 0
            rng = generator(0, "corruption", name, severity, device=images.device)
            for inputs, labels in zip(images.split(BATCH), split.labels.split(BATCH), strict=True):
                outputs = forward(prepare(corrupt(inputs, name, severity, rng), mean, deviation))
                right += int((outputs.argmax(1) == labels).sum())
            rows.append({"corruption": name, "severity": severity, "accuracy": right / len(split)})
    return rows


def corrupt(images: Tensor, name: str, severity: int, rng: torch.Generator) -> Tensor:
    """uint8 images (N, 1 or 3, H, W) with one corruption, uint8 again; random kinds draw from `rng`."""
    change, values = CORRUPTIONS[name]
    return change(images.float().div(255), values[severity - 1], rng).mul(255).round().clamp(0, 255).byte()


def _normal(x: Tensor, rng: torch.Generator) -> Tensor:
    return torch.empty_like(x).normal_(generator=rng)


def _impulse(x: Tensor, amount: float, rng: torch.Generator) -> Tensor:
    draw = torch.empty_like(x).uniform_(generator=rng)  # salt and pepper, half each
    return x.masked_fill(draw < amount / 2, 0).masked_fill(draw > 1 - amount / 2, 1)


def _blur(x: Tensor, deviation: float, rng: torch.Generator) -> Tensor:
    from torchvision.transforms.v2.functional import gaussian_blur

    blurred: Tensor = gaussian_blur(x, 2 * int(4 * deviation + 0.5) + 1, deviation)  # cut off at 4 deviations
    return blurred


def _brighten(x: Tensor, added: float, rng: torch.Generator) -> Tensor:
    value = x.amax(1, keepdim=True)  # V of HSV; hue and saturation stay when all channels grow alike
    brighter = (value + added).clamp(max=1)
    return torch.where(value > 0, x * brighter / value.clamp(min=1 / 255), brighter)


def _contrast(x: Tensor, factor: float, rng: torch.Generator) -> Tensor:
    means = x.mean((2, 3), keepdim=True)
    return (x - means) * factor + means


def _pixelate(x: Tensor, factor: float, rng: torch.Generator) -> Tensor:
    small = F.interpolate(x, size=[int(side * factor) for side in x.shape[2:]], mode="area")
    return F.interpolate(small, size=list(x.shape[2:]), mode="nearest-exact")


def _jpeg(x: Tensor, quality: float, rng: torch.Generator) -> Tensor:
    from torchvision.transforms.v2.functional import jpeg

    coded: Tensor = jpeg(x.mul(255).round().byte().cpu(), int(quality))
    return coded.to(x.device).float().div(255)


def _posterize(x: Tensor, bits: float, rng: torch.Generator) -> Tensor:
    from torchvision.transforms.v2.functional import posterize

    coarse: Tensor = posterize(x.mul(255).round().byte(), int(bits))
    return coarse.float().div(255)


Change = Callable[[Tensor, float, torch.Generator], Tensor]
CORRUPTIONS: dict[str, tuple[Change, tuple[float, ...]]] = {
    "gaussian_noise": (lambda x, c, rng: x + c * _normal(x, rng), (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (lambda x, c, rng: torch.poisson(x * c, generator=rng) / c, (500, 250, 100, 75, 50)),
    "impulse_noise": (_impulse, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "speckle_noise": (lambda x, c, rng: x + x * c * _normal(x, rng), (0.06, 0.10, 0.12, 0.16, 0.20)),
    "gaussian_blur": (_blur, (0.4, 0.6, 0.7, 0.8, 1.0)),
    "brightness": (_brighten, (0.05, 0.10, 0.15, 0.20, 0.30)),
    "contrast": (_contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "pixelate": (_pixelate, (0.95, 0.90, 0.85, 0.75, 0.65)),
    "jpeg": (_jpeg, (80, 65, 58, 50, 40)),
    "posterize": (_posterize, (6, 5, 4, 3, 2)),
}
