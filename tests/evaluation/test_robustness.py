"""Noise and corruptions: by hand on tiny images, then on real ones."""

import math
import re

import pytest
import torch
from torch import Tensor

from subnet_search.core.errors import UserError
from subnet_search.core.rng import generator
from subnet_search.data import Split, load
from subnet_search.evaluation import robustness
from subnet_search.evaluation.robustness import CORRUPTIONS, corrupt, corruption_table, noise_curve

NOISE = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")


def images(count: int = 4, channels: int = 3, height: int = 8, width: int = 8) -> Tensor:
    shape = (count, channels, height, width)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator(0, "test images"))


def nearest_mean(split: Split):
    """A real classifier without training: the nearest class mean, as logits of inputs that are not normalised."""
    means = torch.stack([split.inputs[split.labels == c].float().mean(0) for c in range(10)]).flatten(1)
    return lambda x: -torch.cdist(x.flatten(1), means) / 10


def test_noise_by_hand():
    # One input of one number; the class is its sign. 0.5 stays positive under noise below 0.5 and -0.5 negative.
    split = Split(torch.tensor([[0.5], [-0.5]]), torch.tensor([1, 0]))
    forward = lambda x: torch.cat([-x, x], 1)  # noqa: E731
    opposite = lambda x: torch.cat([x, -x], 1)  # noqa: E731
    clean, little = noise_curve(forward, opposite, split, None, None, levels=(0, 0.4))
    # Softmax of (-0.5, 0.5) is (1 - p, p) with p = 1 / (1 + exp(-1)); the other network's is (p, 1 - p).
    apart = math.sqrt(2) * abs(2 / (1 + math.exp(-1)) - 1)
    assert clean == {"level": 0, "accuracy": 1.0, "agreement": 0.0, "distance": pytest.approx(apart)}
    assert little["accuracy"] == 1.0
    same = noise_curve(forward, forward, split, None, None, levels=(5,))[0]
    assert (same["agreement"], same["distance"]) == (1.0, 0.0)
    assert noise_curve(forward, None, split, None, None, levels=(0,))[0]["agreement"] is None


def test_noise_comes_after_normalisation_and_within_its_level():
    split = Split(images(1200, 1), torch.zeros(1200, dtype=torch.long))
    mean, std = torch.tensor([0.5]), torch.tensor([0.1])
    normalised = (split.inputs.float() / 255 - 0.5) / 0.1
    seen: list[Tensor] = []

    def forward(x: Tensor) -> Tensor:
        seen.append(x)
        return x.flatten(1)[:, :2]

    noise_curve(forward, None, split, mean, std, levels=(0.3,))
    noise = torch.cat(seen) - normalised
    assert 0.29 < noise.abs().max() <= 0.3001
    assert noise.abs().mean() == pytest.approx(0.15, abs=0.002)  # of a uniform number below 0.3
    assert len(seen) == 2
    assert not torch.equal(noise[:200], noise[1000:])  # batches draw on, not again


def test_noise_depends_on_seed_and_level_alone():
    split = load("digits").train
    forward = nearest_mean(split)
    args = (forward, forward, split, None, None)
    rows = noise_curve(*args, levels=(0, 20, 20))
    assert rows == noise_curve(*args, levels=(0, 20, 20))
    assert rows[:2] == noise_curve(*args, levels=(0, 20))
    assert rows[1] != rows[2]  # another place in the list, another draw
    assert rows != noise_curve(*args, levels=(0, 20, 20), seed=1)
    with pytest.raises(UserError, match="below 0"):
        noise_curve(*args, levels=(-0.1,))


def test_accuracy_falls_with_noise_on_real_images():
    split = load("digits").train
    curve = noise_curve(nearest_mean(split), None, split, None, None, levels=(0, 60, 240))
    accuracy = [row["accuracy"] for row in curve]
    assert accuracy[0] > 0.85 > accuracy[2] + 0.1
    assert accuracy[0] > accuracy[1] > accuracy[2]


def test_corruptions_by_hand():
    rng = generator(0, "test")
    grey = torch.full((1, 1, 8, 8), 100, dtype=torch.uint8)
    grey[..., 4:] = 200
    # Contrast 0.4 around the mean of 150: 150 - 0.4 * 50 and 150 + 0.4 * 50.
    assert corrupt(grey, "contrast", 3, rng).unique().tolist() == [130, 170]
    # Brightness adds 0.2 * 255 = 51 to V, and 0.3 * 255 = 76.5 takes 200 beyond white.
    assert corrupt(grey, "brightness", 4, rng).unique().tolist() == [151, 251]
    assert corrupt(grey, "brightness", 5, rng).max().item() == 255
    # Two bits of 100 = 0b01100100 are 64, of 200 = 0b11001000 are 192.
    assert corrupt(grey, "posterize", 5, rng).unique().tolist() == [64, 192]
    # V of (200, 80, 0) grows by 51 to 251, the others in proportion: 80 * 251 / 200 = 100.4.
    colour = torch.tensor([200, 80, 0], dtype=torch.uint8).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert corrupt(colour, "brightness", 4, rng)[0, :, 0, 0].tolist() == [251, 100, 0]
    black = torch.zeros_like(colour)
    assert corrupt(black, "brightness", 4, rng).unique().tolist() == [51]
    assert corrupt(black, "shot_noise", 5, rng).count_nonzero() == 0
    # Pixelate 0.65 of 8 pixels: 5 wide, so the picture has at most 5 different columns.
    assert len(corrupt(images(1, 1), "pixelate", 5, rng)[0, 0].unique(dim=1).T) == 5


def test_strength_of_the_noise():
    rng = generator(0, "test")
    flat = torch.full((50, 3, 32, 32), 128, dtype=torch.uint8)
    values = {kind: corrupt(flat, kind, 3, rng).float() / 255 for kind in NOISE}
    level = 128 / 255
    assert values["gaussian_noise"].std().item() == pytest.approx(0.08, rel=0.02)
    assert values["speckle_noise"].std().item() == pytest.approx(0.12 * level, rel=0.02)
    assert values["shot_noise"].std().item() == pytest.approx(math.sqrt(level / 100), rel=0.02)  # Poisson: variance = mean
    assert (values["impulse_noise"] != level).float().mean().item() == pytest.approx(0.03, rel=0.1)
    assert values["impulse_noise"].unique().tolist() == pytest.approx([0, level, 1])


@pytest.mark.parametrize("kind", CORRUPTIONS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (1, 28, 28), (3, 9, 13), (3, 64, 64)])
def test_every_size_and_every_severity(kind: str, shape: tuple[int, int, int]):
    clean = images(3, *shape)
    before = clean.clone()
    off = []
    for severity in range(1, 6):
        found = corrupt(clean, kind, severity, generator(0, "test"))
        assert found.shape == clean.shape
        assert found.dtype == torch.uint8
        off.append((found.float() - clean.float()).abs().mean().item())
    assert torch.equal(clean, before)
    assert 0 < off[0] < off[-1]
    again = corrupt(clean, kind, 5, generator(0, "test"))
    assert torch.equal(again, found)


@pytest.mark.slow
def test_table_on_real_images():
    split = load("digits").train
    forward = nearest_mean(split)
    table = corruption_table(forward, split, None, None)
    assert [(row["corruption"], row["severity"]) for row in table] == [(k, s) for k in CORRUPTIONS for s in (1, 2, 3, 4, 5)]
    clean = (forward(split.inputs.float()).argmax(1) == split.labels).float().mean().item()
    by = {(row["corruption"], row["severity"]): row["accuracy"] for row in table}
    assert 0.5 < by["contrast", 5] < clean  # seen, and harmful
    assert by["gaussian_noise", 1] == pytest.approx(clean, abs=0.01)
    assert table == corruption_table(forward, split, None, None)
    some = corruption_table(forward, split, None, None, severities=(5,), names=["jpeg", "contrast"])
    assert [row["accuracy"] for row in some] == [by["jpeg", 5], by["contrast", 5]]


def test_what_cannot_be_corrupted():
    labels = torch.zeros(4, dtype=torch.long)
    forward = lambda x: x.flatten(1)  # noqa: E731
    for inputs in (torch.rand(4, 3, 8, 8), torch.rand(4, 9), images(4, 2), images(4, 1, 7, 8)):
        with pytest.raises(UserError, match="uint8 images"):
            corruption_table(forward, Split(inputs, labels), None, None)
    good = Split(images(), labels)
    with pytest.raises(UserError, match="did you mean 'jpeg'"):
        corruption_table(forward, good, None, None, names=["jpg"])
    with pytest.raises(UserError, match="from 1 to 5, got 6"):
        corruption_table(forward, good, None, None, severities=(1, 6))


def test_the_table_in_the_docstring_is_what_is_computed():
    rows = re.findall(r"^\| (\w+) +\|[^|]+\|(.+)\|$", robustness.__doc__ or "", re.MULTILINE)
    written = {kind: tuple(float(value) for value in values.split("|")) for kind, values in rows if kind != "kind"}
    assert written == CORRUPTIONS
