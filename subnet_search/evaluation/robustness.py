"""Robustness of a classifier: uniform noise on normalised images, and common corruptions.

Noise: Liebenwein, Baykal, Carter, Gifford & Rus 2021, "Lost in Pruning", arXiv:2103.03014: networks of equal accuracy can
differ in their response to noise ~ U(-eps, eps). One draw for each image.
Corruptions: Hendrycks & Dietterich 2019, arXiv:1903.12261. **They are computed here; results that can be compared with
published ones need the official CIFAR-10-C files (corruption_files.py).** Libraries (imagecorruptions, corrupt-tta,
torch-uncertainty) have the values of ImageNet-C, for 224 pixels, which are far too strong at 32: ResNet-20 has 13 % at
severity 3 of the Gaussian noise of the first, and 36 % here. Formulas and values are those of the authors'
`make_cifar_c.py` (pixels 0..1), except posterize, which is ours. The random draws and the blur's edges differ, and values
are rounded to uint8 instead of truncated. Corruptions that need images or other libraries (frost, snow ...) are not
included.

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

import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from subnet_search.core.errors import UserError, unknown
from subnet_search.core.rng import generator
from subnet_search.data import Items, Split, prepare
from subnet_search.data.normalisation import INDICES
from subnet_search.nets import logits_of

Forward = Callable[[Tensor], Tensor]
BATCH = 1000  # fixed, since the noise of an image depends on the batch size
CORRUPTIONS: dict[str, tuple[float, ...]] = {
    "gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": (500, 250, 100, 75, 50),
    "impulse_noise": (0.01, 0.02, 0.03, 0.05, 0.07),
    "speckle_noise": (0.06, 0.10, 0.12, 0.16, 0.20),
    "gaussian_blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "brightness": (0.05, 0.10, 0.15, 0.20, 0.30),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
    "pixelate": (0.95, 0.90, 0.85, 0.75, 0.65),
    "jpeg": (80, 65, 58, 50, 40),
    "posterize": (6, 5, 4, 3, 2),
}


@torch.no_grad()
def noise_curve(
    forward: Forward,
    reference: Forward | None,
    split: Split | Items,
    mean: Tensor | None,
    std: Tensor | None,
    levels: Sequence[float] = (0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7),
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Accuracy, and agreement with a reference network (such as the dense one), under uniform noise: a row for each level.

    forward, reference: normalised inputs (N, ...) to logits (N, classes); the caller sets evaluation mode.
    levels: eps >= 0, in standard deviations of the data. Draws depend only on `seed` and a level's index in `levels`.
    Rows: `level`, `accuracy`, `agreement` (fraction of equal predictions) and `distance` (mean L2 norm of the difference of
    softmax outputs, 0 to 1.41); the last two are None without a reference.
    Raises UserError for a level below 0, and for indices, such as token ids.
    """
    check_noise(split)
    assert isinstance(split, Split)
    rows = []
    for index, level in enumerate(levels):
        if not level >= 0:
            raise UserError(f"a noise level must not be below 0, got {level:g}")
        rng = generator(seed, "noise", index, device=split.inputs.device)
        right, equal, distance = 0, 0, 0.0
        for inputs, labels in zip(split.inputs.split(BATCH), split.labels.split(BATCH), strict=True):
            clean = prepare(inputs, mean, std)
            noisy = clean + level * torch.empty_like(clean).uniform_(-1, 1, generator=rng)
            outputs = logits_of(forward(noisy))
            right += int((outputs.argmax(1) == labels).sum())
            if reference is not None:
                others = reference(noisy)
                equal += int((outputs.argmax(1) == others.argmax(1)).sum())
                distance += float((outputs.double().softmax(1) - others.double().softmax(1)).norm(dim=1).sum())
        alike, far = (None, None) if reference is None else (equal / len(split), distance / len(split))
        rows.append({"level": level, "accuracy": right / len(split), "agreement": alike, "distance": far})
    return rows


def check_noise(split: Split | Items) -> None:
    """Raise UserError for inputs that noise cannot be added to."""
    if not isinstance(split, Split) or not isinstance(split.inputs, Tensor):
        raise UserError("noise is added to inputs that are one tensor in memory")
    if split.inputs.dtype in INDICES:
        raise UserError(f"noise is added to float inputs, and these are {split.inputs.dtype}")


def check_corruptions(split: Split | Items) -> None:
    """Raise UserError for inputs that cannot be corrupted."""
    if not isinstance(split, Split) or not isinstance(split.inputs, Tensor):
        raise UserError("corruptions need images that are one tensor in memory")
    images = split.inputs
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] not in (1, 3) or min(images.shape[2:]) < 8:
        found = f"{images.dtype} of shape {tuple(images.shape)}"
        raise UserError(f"corruptions need uint8 images (N, 1 or 3 channels, 8 pixels or more each way), got {found}")


@torch.no_grad()
def corruption_table(
    forward: Forward,
    split: Split | Items,
    mean: Tensor | None,
    std: Tensor | None,
    severities: Sequence[int] = (1, 2, 3, 4, 5),
    names: Iterable[str] | None = None,
) -> list[dict[str, Any]]:
    """Accuracy on corrupted images: rows of `corruption`, `severity` and `accuracy`. Every call draws the same noise.

    split: uint8 images (N, 1 or 3, H, W) of at least 8x8 pixels. names: corruptions (None: all). Other arguments as in
    `noise_curve`. Raises UserError for other inputs, an unknown name, or a severity that is not 1 to 5.
    """
    check_corruptions(split)
    assert isinstance(split, Split)
    images, kinds = split.inputs, list(CORRUPTIONS if names is None else names)
    if missing := [kind for kind in kinds if kind not in CORRUPTIONS]:
        raise unknown("corruption", missing[0], CORRUPTIONS)
    if wrong := [severity for severity in severities if severity not in range(1, 6)]:
        raise UserError(f"a severity must be an integer from 1 to 5, got {wrong[0]!r}")
    rows = []
    for kind, severity in ((kind, severity) for kind in kinds for severity in severities):
        right, rng = 0, generator(0, "corruption", kind, severity, device=images.device)
        for inputs, labels in zip(images.split(BATCH), split.labels.split(BATCH), strict=True):
            outputs = logits_of(forward(prepare(corrupt(inputs, kind, severity, rng), mean, std)))
            right += int((outputs.argmax(1) == labels).sum())
        rows.append({"corruption": kind, "severity": severity, "accuracy": right / len(split)})
    return rows


def corrupt(images: Tensor, kind: str, severity: int, rng: torch.Generator) -> Tensor:
    """Apply one corruption to uint8 images (N, 1 or 3, H, W); returns uint8 images. Noise is drawn from `rng`."""
    from torchvision.transforms.v2 import functional

    x, c = images.float() / 255, CORRUPTIONS[kind][severity - 1]
    match kind:
        case "gaussian_noise":
            x = x + c * torch.empty_like(x).normal_(generator=rng)
        case "shot_noise":
            x = torch.poisson(x * c, generator=rng) / c
        case "impulse_noise":
            draw = torch.empty_like(x).uniform_(generator=rng)  # half 0, half 1, for each channel separately
            x = x.masked_fill(draw < c / 2, 0).masked_fill(draw >= 1 - c / 2, 1)
        case "speckle_noise":
            x = x + x * c * torch.empty_like(x).normal_(generator=rng)
        case "gaussian_blur":
            x = functional.gaussian_blur(x, 2 * int(4 * c + 0.5) + 1, c)  # truncated at four standard deviations
        case "brightness":
            value = x.amax(1, keepdim=True)  # V of HSV; scaling all channels keeps hue and saturation
            brighter = (value + c).clamp(max=1)
            x = torch.where(value > 0, x * brighter / value, brighter)
        case "contrast":
            means = x.mean((2, 3), keepdim=True)
            x = (x - means) * c + means
        case "pixelate":
            small = F.interpolate(x, [int(side * c) for side in x.shape[2:]], mode="area")
            x = F.interpolate(small, list(x.shape[2:]), mode="nearest-exact")
        case "jpeg":
            return torch.stack([_jpeg(image, int(c)) for image in images.cpu()]).to(images.device)
        case "posterize":
            return functional.posterize(images, int(c))  # type: ignore[no-any-return]
    return x.mul(255).round().clamp(0, 255).byte()


def _jpeg(image: Tensor, quality: int) -> Tensor:
    from PIL import Image
    from torchvision.transforms.v2 import functional

    buffer = io.BytesIO()
    functional.to_pil_image(image).save(buffer, "JPEG", quality=quality)
    return functional.pil_to_tensor(Image.open(buffer))  # type: ignore[no-any-return]
