"""Data sets from every source, the mistakes that files bring, and batches as a function of (seed, step)."""

import gzip
import io
import math
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset

from subnet_search.core.errors import UserError
from subnet_search.data import AUGMENTATIONS, Batches, DataSpec, Split, catalogue, from_user, load, prepare
from subnet_search.data.batches import crop, cutout, flip
from subnet_search.data.sources import NAMES, PREFIXES

FASHION = "/usr/share/datasets/fashion-mnist"  # where Debian's package puts it
CIFAR10 = "SUBNET_SEARCH_CIFAR10"


def rows(*splits):
    """Every (image, label) of the splits, in some order of its own: equal when the same items are there."""
    return sorted(
        (image.numpy().tobytes(), int(label)) for s in splits for image, label in zip(s.inputs, s.labels, strict=True)
    )


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# --- digits, and how a data set is split ---


@pytest.fixture(scope="module")
def all_digits():
    """scikit-learn's 1797 images, their values 0 to 16 stretched to 0 to 255."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return Split(torch.from_numpy((bunch.images * 255 / 16).astype(np.uint8)).unsqueeze(1), torch.from_numpy(bunch.target))


def test_digits_have_three_stratified_parts(all_digits):
    data = load("digits")
    assert [len(part) for part in (data.train, data.val, data.test())] == [1294, 144, 359]
    assert (data.shape, data.classes, data.train.inputs.dtype) == ((1, 8, 8), 10, torch.uint8)
    for part, share in ((data.train, 0.72), (data.val, 0.08), (data.test(), 0.2)):
        assert (part.labels.bincount() - share * all_digits.labels.bincount()).abs().max() <= 1


def test_digits_are_split_without_overlap_and_without_loss(all_digits):
    data = load("digits")
    assert rows(data.train, data.val, data.test()) == rows(all_digits)


def test_the_validation_split_depends_on_the_split_seed_and_the_test_split_on_nothing():
    one, again, other = (load(DataSpec(name="digits", split_seed=seed)) for seed in (0, 0, 1))
    assert one.val.inputs.equal(again.val.inputs)
    assert rows(one.val) != rows(other.val)
    assert rows(one.train, one.val) == rows(other.train, other.val)
    small = load(DataSpec(name="digits", limit=100, val_fraction=0.3))
    assert one.test().inputs.equal(other.test().inputs)
    assert one.test().inputs.equal(small.test().inputs)


def test_val_fraction_is_a_fraction_of_the_training_images():
    assert len(load(DataSpec(name="digits", val_fraction=0.25)).val) == pytest.approx(1438 / 4, abs=5)


@pytest.mark.parametrize("limit", [20, 50, 101, 333, 1000])
def test_limit_is_never_passed(limit):
    data = load(DataSpec(name="digits", limit=limit))
    used = torch.cat([data.train.labels, data.val.labels])
    assert limit - 10 <= len(used) <= limit
    assert used.bincount().max() - used.bincount().min() <= 0.02 * limit + 2  # the classes are nearly of one size


def test_a_limit_above_the_data_changes_nothing():
    assert load(DataSpec(name="digits", limit=5000)).train.inputs.equal(load("digits").train.inputs)


def test_an_unknown_data_set_names_the_nearest():
    with pytest.raises(UserError, match="unknown data set 'digit': did you mean 'digits'"):
        load("digit")


def test_the_catalogue_lists_every_name():
    listed = {row["name"]: row for row in catalogue()}
    assert set(listed) == {*NAMES, *PREFIXES}
    assert listed["digits"]["state"] == "here"
    assert all(row["description"] for row in listed.values())


# --- npz ---


def arrays(n=40, size=8, channels=None, classes=4, seed=0):
    """Images and labels in the MedMNIST layout: (N, H, W) or (N, H, W, C) and (N, 1)."""
    draw = np.random.default_rng(seed)
    shape = (n, size, size) if channels is None else (n, size, size, channels)
    return draw.integers(0, 256, shape, dtype=np.uint8), (np.arange(n) % classes).astype(np.uint8)[:, None]


def npz(folder, **parts):
    """An npz file of `train=(images, labels)` and so on; a part that is None is left out."""
    path = folder / "images.npz"
    named = {f"{split}_{kind}": a for split, pair in parts.items() for kind, a in zip(("images", "labels"), pair, strict=True)}
    np.savez_compressed(path, **{name: array for name, array in named.items() if array is not None})
    return path


@pytest.mark.parametrize(("channels", "shape"), [(None, (1, 8, 8)), (3, (3, 8, 8))])
def test_npz_with_all_three_splits(tmp_path, channels, shape):
    train, val, test = (arrays(n, channels=channels, seed=n) for n in (40, 12, 8))
    data = load(f"npz:{npz(tmp_path, train=train, val=val, test=test)}")
    assert [len(part) for part in (data.train, data.val, data.test())] == [40, 12, 8]
    assert (data.shape, data.classes, data.train.labels.dtype) == (shape, 4, torch.int64)
    assert data.train.labels.tolist() == train[1][:, 0].tolist()
    pixels = torch.from_numpy(train[0]).view(40, 8, 8, -1)
    assert data.train.inputs.permute(0, 2, 3, 1).equal(pixels)


def test_npz_without_a_validation_split_holds_some_out(tmp_path):
    data = load(f"npz:{npz(tmp_path, train=arrays(40))}")
    assert [len(data.train), len(data.val), data.test()] == [36, 4, None]
    assert sorted(data.val.labels.tolist()) == [0, 1, 2, 3]


def test_npz_with_flat_labels_and_a_root(tmp_path):
    images, labels = arrays()
    path = npz(tmp_path, train=(images, labels[:, 0].astype(np.int32)))
    assert load(DataSpec(name=f"npz:{path.name}", root=str(tmp_path))).classes == 4


def test_npz_statistics_are_those_of_the_training_images(tmp_path):
    data = load(f"npz:{npz(tmp_path, train=arrays(channels=3), val=arrays(8, channels=3))}")
    pixels = data.train.inputs.double().transpose(0, 1).flatten(1) / 255
    torch.testing.assert_close(data.mean, pixels.mean(1).float())
    torch.testing.assert_close(data.std, pixels.std(1, unbiased=False).float())


IMAGES, LABELS = arrays()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"test": (IMAGES, LABELS)}, "has no array 'train_images'"),
        ({"train": (IMAGES, None)}, "has no array 'train_labels'; it holds train_images"),
        ({"train": (IMAGES / 255, LABELS)}, "train_images must be uint8 .*float64"),
        ({"train": (IMAGES[0], LABELS)}, r"train_images must be .*\(8, 8\)"),
        ({"train": (IMAGES, LABELS / 2)}, "train_labels must be integers .*float64"),
        ({"train": (IMAGES, np.repeat(LABELS, 3, 1))}, r"train_labels must be .*\(40, 3\)"),
        ({"train": (IMAGES, np.array(1))}, "train_labels must be"),
        ({"train": (IMAGES, LABELS.astype(object))}, "train_labels must be integers .*object"),
        ({"train": (IMAGES, LABELS[:30])}, "40 inputs but 30 labels"),
        ({"train": (IMAGES[:0], LABELS[:0])}, "is empty"),
        ({"train": (IMAGES, LABELS.astype(np.int64) - 1)}, "label -1 is outside the classes 0 to 2"),
        ({"train": (IMAGES, LABELS), "val": (IMAGES, LABELS + 1)}, r"\(validation\): label 4 is outside the classes 0 to 3"),
        ({"train": (IMAGES, LABELS), "val": (IMAGES, None)}, "has no array 'val_labels'"),
        ({"train": (IMAGES, LABELS), "val": (IMAGES[:, :6], LABELS)}, r"\(validation\)"),
        ({"train": (IMAGES[:2], LABELS[:2])}, "too few for a validation or test split"),
    ],
    ids=lambda value: None if isinstance(value, str) else "-".join(value),
)
def test_npz_mistakes_name_the_file(tmp_path, parts, message):
    path = npz(tmp_path, **parts)
    with pytest.raises(UserError, match=message) as caught:
        load(f"npz:{path}")
    if "too few" not in message:
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ((IMAGES, LABELS + 1), r"\(test\): label 4 is outside the classes 0 to 3"),
        ((IMAGES, LABELS[:5]), r"\(test\): 40 inputs but 5 labels"),
        ((IMAGES / 255, LABELS), "test_images must be uint8"),
        ((IMAGES, None), "has no array 'test_labels'"),
        ((IMAGES[:, :6], LABELS), r"\(test\)"),
    ],
    ids=["label", "length", "dtype", "missing", "shape"],
)
def test_the_test_split_is_not_looked_at_before_it_is_asked_for(tmp_path, test, message):
    path = npz(tmp_path, train=(IMAGES, LABELS), test=test)
    data = load(f"npz:{path}")
    with pytest.raises(UserError, match=message) as caught:
        data.test()
    assert str(path) in str(caught.value)


def test_a_missing_npz(tmp_path):
    with pytest.raises(UserError, match=f"no such data file: {tmp_path}/none.npz"):
        load(f"npz:{tmp_path}/none.npz")


def damage(raw):
    """Zeros in the middle of the first compressed array."""
    return raw[:100] + bytes(40) + raw[140:]


def as_npy(raw):
    """No archive at all, but a single array."""
    file = io.BytesIO()
    np.save(file, IMAGES)
    return file.getvalue()


@pytest.mark.parametrize(
    "spoil",
    [lambda raw: raw[:-30], lambda raw: raw[: len(raw) // 2], lambda raw: b"", lambda raw: b"text", damage, as_npy],
    ids=["no end", "half", "empty", "text", "damaged", "npy"],
)
def test_an_npz_that_is_not_whole(tmp_path, spoil):
    path = npz(tmp_path, train=(IMAGES, LABELS))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(UserError, match=f"{path} is not a readable npz file"):
        load(f"npz:{path}")


# --- Fashion-MNIST ---


def idx(array):
    """An array of bytes as an idx file."""
    return struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def fashion_files(folder, zipped, names=("train", "t10k")):
    """Small files with Fashion-MNIST's names: 40 training images and 20 for the test."""
    for name, n in zip(names, (40, 20), strict=False):
        images, labels = arrays(n)
        for file, array in ((f"{name}-images-idx3-ubyte", images), (f"{name}-labels-idx1-ubyte", labels[:, 0])):
            raw = idx(array)
            (folder / (file + ".gz" * zipped)).write_bytes(gzip.compress(raw) if zipped else raw)
    return DataSpec(name="fashion_mnist", root=str(folder))


@pytest.mark.parametrize("zipped", [True, False])
def test_fashion_mnist_from_idx_files(tmp_path, zipped):
    data = load(fashion_files(tmp_path, zipped))
    assert [len(part) for part in (data.train, data.val, data.test())] == [36, 4, 20]
    images, labels = arrays(40)
    assert rows(data.train, data.val) == rows(Split(torch.from_numpy(images)[:, None], torch.from_numpy(labels[:, 0])))


@pytest.mark.parametrize("file", ["train-images-idx3-ubyte", "train-labels-idx1-ubyte"])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("length", [-10, 30, 3, 0])
def test_a_truncated_idx_file(tmp_path, zipped, file, length):
    spec = fashion_files(tmp_path, zipped)
    path = tmp_path / (file + ".gz" * zipped)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(UserError, match=f"{path} is not a (readable|valid) idx file"):
        load(spec)


def test_a_damaged_gzip_file(tmp_path):
    spec = fashion_files(tmp_path, True)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    raw = path.read_bytes()
    path.write_bytes(raw[:10] + b"\xff" * 40 + raw[50:])
    with pytest.raises(UserError, match=f"{path} is not a readable idx file"):
        load(spec)


def test_labels_where_images_should_be(tmp_path):
    spec = fashion_files(tmp_path, False)
    (tmp_path / "train-images-idx3-ubyte").write_bytes((tmp_path / "train-labels-idx1-ubyte").read_bytes())
    with pytest.raises(UserError, match="train-images-idx3-ubyte is not a valid idx file"):
        load(spec)


def test_missing_idx_files(tmp_path):
    spec = fashion_files(tmp_path, True, names=("train",))
    data = load(spec)  # the test files are not looked for before they are asked for
    with pytest.raises(UserError, match=f"{tmp_path} has no t10k-images-idx3-ubyte"):
        data.test()
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(UserError, match=f"{tmp_path} has no train-labels-idx1-ubyte"):
        load(spec)


def test_a_folder_of_other_files_is_not_downloaded_into(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=f"no Fashion-MNIST idx files .* in {tmp_path}"):
        load(DataSpec(name="fashion_mnist", root=str(tmp_path)))


@pytest.mark.skipif(not Path(FASHION).is_dir(), reason=f"Fashion-MNIST is not installed in {FASHION}")
def test_the_real_fashion_mnist():
    data = load(DataSpec(name="fashion_mnist", root=FASHION))
    assert [len(part) for part in (data.train, data.val, data.test())] == [54_000, 6_000, 10_000]
    assert (data.shape, data.classes) == ((1, 28, 28), 10)
    assert data.val.labels.bincount().tolist() == [600] * 10
    assert data.test().labels.bincount().tolist() == [1000] * 10
    assert data.mean.item() == pytest.approx(0.2860, abs=1e-3)  # as published
    assert data.std.item() == pytest.approx(0.3530, abs=1e-3)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get(CIFAR10), reason=f"{CIFAR10} does not name an npz file of CIFAR-10")
def test_the_real_cifar10():
    data = load(f"npz:{os.environ[CIFAR10]}")
    assert [len(part) for part in (data.train, data.val, data.test())] == [45_000, 5_000, 10_000]
    assert (data.shape, data.classes) == ((3, 32, 32), 10)
    assert data.val.labels.bincount().tolist() == [500] * 10
    torch.testing.assert_close(data.mean, torch.tensor([0.4914, 0.4822, 0.4465]), atol=1e-3, rtol=0)  # as published
    torch.testing.assert_close(data.std, torch.tensor([0.2470, 0.2435, 0.2616]), atol=1e-3, rtol=0)


# --- image folders ---


def pictures(folder, classes=("cat", "dog"), n=10):
    """`n` images of one colour a class, wider than high."""
    for i, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for j in range(n):
            Image.new("RGB", (20, 16), (100 * i, 10 * j, 50)).save(folder / name / f"{j}.png")


def folder_spec(folder):
    return DataSpec(name=f"image_folder:{folder}", size=8)


def test_an_image_folder_without_splits(tmp_path):
    pictures(tmp_path)
    data = load(folder_spec(tmp_path))
    assert [len(part) for part in (data.train, data.val, data.test())] == [14, 2, 4]
    assert (data.shape, data.classes, data.train.inputs.dtype) == ((3, 8, 8), 2, torch.uint8)
    assert data.train.inputs[:, 0].unique().tolist() == [0, 100]
    assert (data.train.inputs[:, 0, 0, 0] == 100 * data.train.labels).all()
    assert len(set(rows(data.train, data.val, data.test()))) == 20


def test_an_image_folder_with_all_splits(tmp_path):
    for split, n in (("train", 10), ("val", 3), ("test", 2)):
        pictures(tmp_path / split, n=n)
    data = load(folder_spec(tmp_path))
    assert [len(part) for part in (data.train, data.val, data.test())] == [20, 6, 4]


def test_an_image_folder_with_train_only(tmp_path):
    pictures(tmp_path / "train")
    data = load(folder_spec(tmp_path))
    assert [len(data.train), len(data.val), data.test()] == [18, 2, None]


def test_no_test_image_is_looked_at_before_it_is_asked_for(tmp_path):
    pictures(tmp_path / "train")
    pictures(tmp_path / "test")
    (tmp_path / "test" / "cat" / "3.png").write_bytes(b"not a picture")
    data = load(folder_spec(tmp_path))
    with pytest.raises(UserError, match=f"{tmp_path}/test/cat/3.png is not a readable image"):
        data.test()


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_class_folders_of_all_splits_are_compared_before_training(tmp_path, split):
    pictures(tmp_path / "train")
    pictures(tmp_path / split, classes=("cat", "dog", "eel"))
    with pytest.raises(UserError, match=rf"{split} and .*train have different classes: \['eel'\]"):
        load(folder_spec(tmp_path))


def test_mistakes_in_image_folders(tmp_path):
    with pytest.raises(UserError, match=f"no such image folder: {tmp_path}/none"):
        load(folder_spec(tmp_path / "none"))
    with pytest.raises(UserError, match="is not an image folder"):
        load(folder_spec(tmp_path))  # empty
    pictures(tmp_path)
    (tmp_path / "cat" / "3.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=f"{tmp_path}/cat/3.png is not a readable image"):
        load(folder_spec(tmp_path))
    (tmp_path / "cat" / "3.png").write_bytes((tmp_path / "cat" / "2.png").read_bytes()[:45])
    with pytest.raises(UserError, match=f"{tmp_path}/cat/3.png is not a readable image"):
        load(folder_spec(tmp_path))


# --- from the user's hands ---

X, Y = torch.randn(40, 6, generator=rng()), torch.arange(40) % 4


@pytest.mark.parametrize(
    "data",
    [
        (X, Y),
        [X.double(), Y[:, None]],
        (X.numpy(), Y.numpy()),
        TensorDataset(X, Y),
        DataLoader(TensorDataset(X, Y), batch_size=7),
    ],
    ids=["pair", "list", "numpy", "dataset", "loader"],
)
def test_data_from_the_users_hands(data):
    found = from_user(data)
    assert rows(found.train, found.val) == rows(Split(X, Y))
    assert [len(found.train), len(found.val), found.test()] == [36, 4, None]
    assert (found.shape, found.classes, found.mean) == ((6,), 4, None)  # floats are used as they are
    assert (found.train.inputs.dtype, found.train.labels.dtype) == (torch.float32, torch.int64)


def test_images_from_the_users_hands_have_statistics():
    images = torch.randint(0, 256, (40, 3, 8, 8), generator=rng()).to(torch.uint8)
    assert from_user((images, Y)).mean.shape == (3,)


def test_statistics_can_be_set():
    images = torch.randint(0, 256, (40, 3, 8, 8), generator=rng()).to(torch.uint8)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    for given in ((mean, std), (torch.tensor(mean), np.array(std))):
        data = from_user((images, Y), mean=given[0], std=given[1])
        torch.testing.assert_close((data.mean, data.std), (torch.tensor(mean), torch.tensor(std)))
    pixels = prepare(images[:2], data.mean, data.std)
    expected = (images[:2] / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(pixels, expected, rtol=1e-5, atol=1e-5)
    for named in (from_user("digits", mean=0.5, std=0.25), load({"name": "digits", "mean": [0.5], "std": 0.25})):
        assert (named.mean.tolist(), named.std.tolist()) == ([0.5], [0.25])
        assert named.spec.model_dump(mode="json")["std"] == [0.25]
    with pytest.raises(UserError, match="this data is already loaded: pass mean and std to load_data"):
        from_user(named, mean=[0.1], std=[0.1])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": [0.5, 0.5], "std": [1, 1]}, r"data\.mean and data\.std have length 2; the images of digits have 1 channel"),
        ({"mean": [0.5], "std": [0]}, r"std: must be a finite number above 0, got 0\.0"),
        ({"mean": [0.5], "std": [-0.1]}, r"std: .*above 0, got -0\.1"),
        ({"mean": [0.5], "std": [math.inf]}, r"std\.0: input should be a finite number, got inf"),
        ({"mean": [math.nan], "std": [1]}, r"mean\.0: input should be a finite number, got nan"),
        ({"mean": [123.7], "std": [58.4]}, r"mean: must be between 0 and 1, .*, got 123\.7"),
        ({"mean": [0.5]}, "mean is set without std: set both"),
        ({"std": [0.5]}, "std is set without mean: set both"),
        ({"mean": [0.5], "std": [0.5, 0.5]}, "mean and std need one value for each channel, got 1 and 2"),
        ({"mean": ["x"], "std": [0.5]}, "mean.0: input should be a valid number"),
    ],
)
def test_statistics_that_cannot_be(values, message):
    with pytest.raises(UserError, match=message) as caught:
        load({"name": "digits", **values})
    assert "\n" not in str(caught.value)


def test_statistics_are_for_images():
    with pytest.raises(UserError, match=r"data\.mean and data\.std need uint8 images .*torch\.float32 of shape \(36, 6\)"):
        from_user((X, Y), mean=[0.5], std=[0.5])


def test_names_and_loaded_data_pass_through():
    data = load("digits")
    assert from_user(data) is data
    assert from_user("digits").train.inputs.equal(data.train.inputs)
    assert from_user({"name": "digits", "limit": 100}).classes == 10


class Uneven(Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, i):
        return torch.zeros(4 if i else 3), int(Y[i])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (3, "data must be a name, a pair .*got int"),
        ((X, Y, Y), "data must be a name, a pair .*got tuple; a network of several inputs: \\(\\(a, b\\), labels\\)"),
        ((X, Y[:30]), "40 inputs but 30 labels"),
        ((X, Y.float()), "labels must be whole numbers .*got torch.float32"),
        ((X, Y - 1), "label -1 is outside"),
        ((X[:0], Y[:0]), "is empty"),
        ((X[:3], Y[:3]), "too few for a validation or test split"),
        (TensorDataset(X[:0], Y[:0]), "is empty"),
        (DataLoader(TensorDataset(X[:0], Y[:0])), "is empty"),
        (TensorDataset(X, Y + 0.5), "labels must be whole numbers"),
        (TensorDataset(X, F.one_hot(Y)), "label"),
        (TensorDataset(X), "got no labels"),
        (DataLoader(TensorDataset(X)), "got no labels"),
        (Uneven(), "shape|size"),
    ],
    ids=[
        "number", "triple", "lengths", "float labels", "negative label", "empty pair", "too few", "empty dataset",
        "empty loader", "dataset of float labels", "one-hot labels", "dataset without labels", "loader without labels",
        "uneven inputs",
    ],
)  # fmt: skip
def test_mistakes_in_the_users_data(data, message):
    with pytest.raises(UserError, match=message):
        from_user(data)


# --- batches ---

NUMBERED = Split(torch.arange(24).view(24, 1), torch.arange(24))


def batches(split=NUMBERED, size=8, seed=0, **settings):
    return Batches(split, None, None, size, seed, **settings)


def test_a_batch_does_not_depend_on_what_was_asked_before():
    in_order, backwards = batches(), batches()
    forward = [in_order.batch(step)[1].tolist() for step in range(9)]
    assert [backwards.batch(step)[1].tolist() for step in reversed(range(9))] == forward[::-1]


def test_inputs_stay_with_their_labels():
    inputs, labels = batches().batch(4)
    assert inputs.dtype == torch.int64  # indices, such as token ids, are passed as they are
    assert inputs.view(-1).tolist() == labels.tolist()


@pytest.mark.parametrize(("size", "steps"), [(8, 3), (7, 3), (24, 1), (100, 1), (1, 24)])
def test_an_epoch_has_no_image_twice(size, steps):
    found = batches(size=size)
    assert found.steps_per_epoch == steps
    epochs = []
    for epoch in range(3):
        seen = torch.cat([found.batch(epoch * steps + i)[1] for i in range(steps)]).tolist()
        assert len(seen) == len(set(seen)) == steps * min(size, 24)
        epochs.append(seen)
    assert epochs[0] != epochs[1] != epochs[2]


def test_the_order_depends_on_the_seed():
    assert batches(seed=0).batch(0)[1].tolist() != batches(seed=1).batch(0)[1].tolist()


@pytest.mark.parametrize("world", [2, 4, 8])
def test_processes_share_every_batch(world):
    alone = batches()
    together = [batches(rank=rank, world=world) for rank in range(world)]
    for step in range(6):
        parts = [part.batch(step)[1] for part in together]
        assert torch.cat(parts).sort().values.equal(alone.batch(step)[1].sort().values)
        assert len(set(map(len, parts))) == 1


def test_a_batch_that_cannot_be_shared_equally_is_refused():
    with pytest.raises(UserError, match="a batch of 8 items cannot be split equally over 3 processes"):
        batches(rank=0, world=3)


PHOTOS = Split(torch.randint(1, 256, (16, 3, 8, 8), generator=rng()).to(torch.uint8), torch.arange(16))


def by_label(pair):
    inputs, labels = pair
    return inputs[labels.argsort()]


@pytest.mark.parametrize("augment", [("crop",), ("flip",), ("cutout",), ("crop", "flip", "cutout")])
def test_augmentation_is_a_function_of_seed_and_step(augment):
    found = batches(PHOTOS, size=16, augment=augment)
    third = by_label(found.batch(3))
    assert by_label(batches(PHOTOS, size=16, augment=augment).batch(3)).equal(third)
    assert not third.equal(PHOTOS.inputs.float())
    assert not third.equal(by_label(found.batch(4)))
    assert not third.equal(by_label(batches(PHOTOS, size=16, seed=1, augment=augment).batch(3)))


def test_augmentation_leaves_the_data_alone():
    before = PHOTOS.inputs.clone()
    batches(PHOTOS, size=16, augment=tuple(AUGMENTATIONS)).batch(0)
    assert PHOTOS.inputs.equal(before)


def test_crop_shows_every_window_of_the_padded_image():
    # 0 0 0 0
    # 0 1 2 0   has nine windows of 2x2.
    # 0 3 4 0
    # 0 0 0 0
    images = torch.tensor([[1, 2], [3, 4]], dtype=torch.uint8).expand(300, 1, 2, 2)
    windows = {tuple(window.view(-1).tolist()) for window in crop(images, rng(), pad=1)}
    assert windows == {
        (0, 0, 0, 1), (0, 0, 1, 2), (0, 0, 2, 0),
        (0, 1, 0, 3), (1, 2, 3, 4), (2, 0, 4, 0),
        (0, 3, 0, 0), (3, 4, 0, 0), (4, 0, 0, 0),
    }  # fmt: skip


def test_crop_pads_by_four_and_moves_all_channels_together():
    for image, cropped in zip(PHOTOS.inputs, crop(PHOTOS.inputs, rng()), strict=True):
        padded = F.pad(image, (4,) * 4)
        windows = [padded[:, top : top + 8, left : left + 8] for top in range(9) for left in range(9)]
        assert any(window.equal(cropped) for window in windows)


def test_flip_mirrors_half_of_the_images():
    images = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint8).expand(1000, 1, 2, 3)
    flipped = flip(images, rng()).reshape(1000, 6).tolist()
    mirrored = flipped.count([3, 2, 1, 6, 5, 4])
    assert mirrored + flipped.count([1, 2, 3, 4, 5, 6]) == 1000
    assert 430 < mirrored < 570  # 4.4 standard deviations


def holes(size):
    """Heights and widths of what cutout makes black, over many images."""
    black = cutout(torch.ones(500, 3, size, size, dtype=torch.uint8), rng()) == 0
    assert black.equal(black[:, :1].expand_as(black))  # all channels together
    tall, wide = black[:, 0].any(2), black[:, 0].any(1)
    assert black[:, 0].equal(tall[:, :, None] & wide[:, None, :])  # one rectangle
    return tall.sum(1), wide.sum(1)


@pytest.mark.parametrize("size", [8, 32])
def test_cutout_is_a_square_of_half_the_height(size):
    heights, widths = holes(size)
    assert heights.max() == widths.max() == size // 2  # whole where the border does not cut it
    assert heights.min() >= 1


def test_cutout_reaches_every_corner():
    black = cutout(torch.ones(500, 1, 8, 8), rng()) == 0
    assert black.any(0).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_prepare_normalises_to_mean_zero_and_std_one(channels):
    images = torch.randint(0, 200, (100, channels, 8, 8), generator=rng()).to(torch.uint8)
    data = from_user((images, torch.arange(100) % 4))
    pixels = prepare(data.train.inputs, data.mean, data.std).double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(pixels.mean(1), torch.zeros(channels).double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(pixels.std(1, unbiased=False), torch.ones(channels).double(), atol=1e-5, rtol=0)


def test_prepare_by_hand():
    # 51 is 0.2 of 255: (0.2 - 0.1) / 0.5 = 0.2; 255 is 1: (1 - 0.1) / 0.5 = 1.8.
    image = torch.tensor([51, 255], dtype=torch.uint8).view(1, 1, 1, 2)
    torch.testing.assert_close(prepare(image, torch.tensor([0.1]), torch.tensor([0.5])).view(-1), torch.tensor([0.2, 1.8]))
    assert prepare(image, None, None).view(-1).tolist() == [51, 255]
