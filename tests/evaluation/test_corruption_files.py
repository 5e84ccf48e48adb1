"""Folders in the format of CIFAR-10-C: accuracies by hand, and files that are refused."""

import numpy as np
import pytest
import torch

from subnet_search.core.errors import UserError
from subnet_search.evaluation.corruption_files import CorruptedFiles, benchmark_mean

SHAPE = (3, 4, 4)


@pytest.fixture
def folder(tmp_path):
    """Two images of each severity, of the classes 0 and 1, each of the brightness that the severity leaves it."""
    labels = np.tile([0, 1], 5).astype(np.int32)
    brightness = [0, 200, 0, 200, 0, 90, 0, 90, 150, 90]  # class 1 is lost at severity 3, class 0 at severity 5
    images = np.broadcast_to(np.array(brightness, dtype=np.uint8)[:, None, None, None], (10, 4, 4, 3))
    np.save(tmp_path / "labels.npy", labels)
    np.save(tmp_path / "fog.npy", images)
    np.save(tmp_path / "saturate.npy", np.zeros_like(images))
    return tmp_path


def bright(inputs):
    """Class 1 for images above half of the brightness."""
    mean = inputs.mean((1, 2, 3))
    return torch.stack([0.5 - mean, mean - 0.5], 1)


def test_accuracies_by_hand(folder):
    files = CorruptedFiles.of(folder, SHAPE, 2)
    none, one = torch.zeros(3), torch.ones(3)
    rows = files.table(bright, none, one)
    fog = [row["accuracy"] for row in rows if row["corruption"] == "fog"]
    assert fog == [1, 1, 0.5, 0.5, 0]
    assert [row["accuracy"] for row in rows if row["corruption"] == "saturate"] == [0.5] * 5
    assert benchmark_mean(rows) == pytest.approx(0.6)  # saturate is one of the four extra kinds
    assert files.table(bright, none, one, [5])[0] == {"corruption": "fog", "severity": 5, "accuracy": 0}
    half = files.table(bright, torch.full((3,), 0.5), torch.full((3,), 0.5))  # normalised: 200 is 0.57, 90 is -0.29
    assert half[0]["accuracy"] == 1


def test_colours_are_moved_to_the_front(folder):
    images = np.zeros((10, 4, 4, 3), dtype=np.uint8)
    images[..., 2] = 255
    np.save(folder / "fog.npy", images)
    seen = []
    CorruptedFiles.of(folder, SHAPE, 2).table(lambda x: seen.append(x) or x.flatten(1), torch.zeros(3), torch.ones(3), [1])
    assert seen[0].shape == (2, 3, 4, 4)
    assert seen[0].mean((0, 2, 3)).tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("fog", np.zeros((10, 4, 4, 3)), r"fog\.npy must be uint8 of shape \(10, 4, 4, 3\), got float64"),
        ("fog", np.zeros((8, 4, 4, 3), dtype=np.uint8), r"got uint8 of shape \(8, 4, 4, 3\)"),
        ("labels", np.zeros(9, dtype=int), "5 N integers, got int64 of shape"),
        ("labels", np.full(10, 2), "classes from 2 to 2, the network 2"),
    ],
)
def test_files_that_are_refused(folder, name, array, message):
    np.save(folder / f"{name}.npy", array)
    with pytest.raises(UserError, match=message):
        CorruptedFiles.of(folder, SHAPE, 2)


def test_folders_that_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="has no corrupted images"):
        CorruptedFiles.of(tmp_path / "nothing", SHAPE, 2)
    (folder / "fog.npy").write_bytes(b"no array")
    with pytest.raises(UserError, match=r"fog\.npy is not a file of numpy, or is damaged"):
        CorruptedFiles.of(folder, SHAPE, 2)
