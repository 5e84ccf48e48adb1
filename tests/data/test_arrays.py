"""Arrays in npz, npy and safetensors files, in memory and memory-mapped, and image folders that are read item by item."""

import json
import struct

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from test_data import pictures
from toys import mlp

import subnet_search as ss
from subnet_search.core.errors import UserError
from subnet_search.data import Batches, Items, Labels, Split, from_user, load, rows

ANY = Labels(classes=False)
X = np.arange(20 * 3, dtype=np.float32).reshape(20, 3)
Y = np.arange(20) % 2
IMAGES = np.arange(20 * 4 * 5 * 3, dtype=np.uint32).reshape(20, 4, 5, 3).astype(np.uint8)


def saved(folder, kind, arrays):
    """The same arrays in a file of each kind."""
    if kind == "npz":
        np.savez(folder / "a.npz", **arrays)
    elif kind == "safetensors":
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, folder / "a.safetensors")
    else:
        folder = folder / "arrays"
        folder.mkdir(exist_ok=True)
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
        return f"npy:{folder}"
    return f"{kind}:{folder / f'a.{kind}'}"


def everything(data):
    """Inputs and labels of training and validation, sorted by the first input."""
    pairs = [part.batches("val") for part in (data.train, data.val)]
    pairs = [pair for part in pairs for pair in part]
    inputs, labels = (torch.cat(column) for column in zip(*pairs, strict=True))
    order = inputs.flatten(1)[:, 0].sort().indices
    return inputs[order], labels[order]


@pytest.mark.parametrize("kind", ["npz", "npy", "safetensors"])
@pytest.mark.parametrize("in_memory", [True, False])
def test_inputs_and_labels(tmp_path, kind, in_memory):
    data = load({"name": saved(tmp_path, kind, {"x": X, "y": Y}), "in_memory": in_memory})
    assert type(data.train) is (Split if in_memory else Items)
    assert (len(data.train), len(data.val), data.classes, data.shape) == (18, 2, 2, (3,))
    inputs, labels = everything(data)
    assert inputs.equal(torch.from_numpy(X))
    assert labels.tolist() == Y.tolist()


@pytest.mark.parametrize("in_memory", [True, False])
def test_parts_and_channels_last(tmp_path, in_memory):
    arrays = {"train_inputs": IMAGES, "train_labels": Y[:, None], "val_inputs": IMAGES[:4] // 2, "val_labels": Y[:4, None]}
    name = saved(tmp_path, "npz", arrays | {"test_inputs": IMAGES[:2], "test_labels": np.array([[1], [0]])})
    data = load({"name": name, "in_memory": in_memory})
    assert (len(data.train), len(data.val), data.shape) == (20, 4, (3, 4, 5))
    inputs, labels = data.test().first(2)
    assert inputs.equal(torch.from_numpy(IMAGES[:2]).permute(0, 3, 1, 2))
    assert labels.tolist() == [1, 0]
    pixels = torch.from_numpy(IMAGES).float().permute(3, 0, 1, 2).flatten(1) / 255
    torch.testing.assert_close(data.mean, pixels.mean(1))
    torch.testing.assert_close(data.std, pixels.std(1, correction=0))


def test_mapped_and_in_memory_give_the_same_batches(tmp_path):
    name = saved(tmp_path, "npz", {"inputs": IMAGES, "labels": Y})
    memory, mapped = (load({"name": name, "in_memory": here}) for here in (True, False))
    for step in range(6):
        one, other = (Batches(data.train, data.mean, data.std, 8, 0, ["flip"]).batch(step) for data in (memory, mapped))
        assert one[0].equal(other[0])
        assert one[1].equal(other[1])


@pytest.mark.parametrize("in_memory", [True, False])
def test_several_inputs_are_a_mapping(tmp_path, in_memory):
    arrays = {"image": IMAGES, "age": np.arange(20.0), "targets": X}
    data = load({"name": saved(tmp_path, "npy", arrays), "in_memory": in_memory}, ANY)
    first = data.first(2)
    assert {key: (tuple(value.shape), value.dtype) for key, value in first.items()} == {
        "image": ((2, 4, 5, 3), torch.uint8),
        "age": ((2,), torch.float32),
        "targets": ((2, 3), torch.float32),
    }


def test_labels_of_any_shape_are_for_the_task_to_decide(tmp_path):
    name = saved(tmp_path, "npz", {"train_images": IMAGES, "train_labels": Y.repeat(3).reshape(20, 3)})
    assert load(name, ANY).first(2)[1].shape == (2, 3)
    with pytest.raises(UserError, match=r"train_labels must be integers of shape \(N,\) or \(N, 1\)"):
        load(name)


def test_large_arrays_are_mapped_without_being_asked(tmp_path, monkeypatch):
    name = saved(tmp_path, "npz", {"inputs": X, "labels": Y})
    images = saved(tmp_path, "npy", {"train_images": IMAGES, "train_labels": Y})
    pictures(tmp_path / "folder")
    monkeypatch.setattr(rows, "LARGEST_IN_MEMORY", 300)
    assert isinstance(load(name).train, Items)
    assert isinstance(load(images).train, Items)
    assert isinstance(load({"name": f"image_folder:{tmp_path}/folder", "size": 8}).train, Items)
    np.savez_compressed(tmp_path / "a.npz", inputs=X, labels=Y)
    assert isinstance(load(name).train, Split)  # it cannot be mapped
    with pytest.raises(UserError, match=r"a.npz is compressed, so it cannot be read item by item: save it with numpy.savez"):
        load({"name": name, "in_memory": False})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "has no arrays"),
        ({"inputs": X}, "has no labels, an array named labels or label or .*; it holds inputs"),
        ({"labels": Y}, "has no inputs, only labels"),
        ({"inputs": X[:5], "labels": Y}, "the arrays have different lengths: inputs 5, labels 20"),
        ({"inputs": X, "labels": np.array(["a"] * 20)}, "the array 'labels' must be real numbers, got <U1"),
        ({"test_inputs": X, "test_labels": Y}, "has no array 'train_inputs'; it holds test_inputs, test_labels"),
        ({"train_x": X, "train_y": Y, "z": X}, "the name of the array 'z' must begin with train_, val_ or test_"),
        ({"train_x": X, "train_y": Y, "val_x": X}, "has the array 'y' in only one of train_y and val_y"),
        ({"inputs": X, "labels": Y - 1}, "label -1 is outside the classes 0 to 0"),
        ({"inputs": np.where(X == 7, np.nan, X), "labels": Y}, "NaN or infinite values"),
    ],
)
@pytest.mark.parametrize("in_memory", [None, False])
def test_mistakes_name_the_file(tmp_path, arrays, message, in_memory):
    with pytest.raises(UserError, match=message) as caught:
        load({"name": saved(tmp_path, "npz", arrays), "in_memory": in_memory})
    assert len(str(caught.value).splitlines()) == 1


def test_damaged_files(tmp_path):
    saved(tmp_path, "npy", {"inputs": X, "labels": Y})
    (tmp_path / "arrays" / "inputs.npy").write_bytes((tmp_path / "arrays" / "inputs.npy").read_bytes()[:-4])
    with pytest.raises(UserError, match=r"inputs.npy is not a readable npy file: 236 bytes of data for shape \(20, 3\)"):
        load(f"npy:{tmp_path}/arrays")
    with pytest.raises(UserError, match="no such folder of npy files"):
        load(f"npy:{tmp_path}/none")
    path = tmp_path / "a.safetensors"
    for header, message in (
        ({"x": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}, "the tensor 'x' is not whole"),
        (
            {"x": {"dtype": "BF16", "shape": [4], "data_offsets": [0, 8]}},
            "has type BF16, which numpy does not have: save it as F32",
        ),
    ):
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text)
        with pytest.raises(UserError, match=message):
            load(f"safetensors:{path}")
    path.write_bytes(struct.pack("<Q", 2**40))
    with pytest.raises(UserError, match="its header claims"):
        load(f"safetensors:{path}")


# --- memory-mapped arrays from Python ---


@pytest.fixture
def mapped(tmp_path):
    """Memory-mapped inputs (60, 10) and labels (60, 1), as a function that opens the file anew."""
    values = np.random.default_rng(0).normal(size=(60, 10)).astype(np.float32)
    np.save(tmp_path / "x.npy", values)
    np.save(tmp_path / "y.npy", values[:, :3].argmax(1)[:, None])
    return lambda: tuple(np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in "xy")


def run(data, out, **options):
    config = ss.RunConfig(
        extractor={"name": "granet", "density": 0.5},
        recipe={"epochs": 3, "batch_size": 8, "threads": 1, "device": "cpu"},
    )
    return ss.run(config, out, module=mlp(), data=data, **options)


def test_memory_mapped_arrays_are_not_copied(mapped):
    x, y = mapped()
    data = from_user((x, y))
    assert isinstance(data.train, Items)
    assert data.train.dataset.arrays[0] is x
    assert not isinstance(from_user((np.array(x), np.array(y))).train, Items)
    same = from_user((torch.from_numpy(np.array(x)), torch.from_numpy(np.array(y))))
    assert data.val.labels.tolist() == same.val.labels.tolist()
    assert Batches(data.train, None, None, 8, 0).batch(3)[0].equal(Batches(same.train, None, None, 8, 0).batch(3)[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_on_mapped_arrays_has_the_bits_of_one_in_memory_and_resumes(mapped, tmp_path, workers):
    x, y = mapped()
    memory = run(from_user((np.array(x), np.array(y))), tmp_path / "memory")
    counted = iter(range(100))
    with pytest.raises(ss.core.errors.Interrupted):
        run(from_user((x, y), workers=workers), tmp_path / "mapped", should_stop=lambda: next(counted) >= 9)
    assert run(from_user(mapped(), workers=workers), tmp_path / "mapped", resume=True).sha256 == memory.sha256


def test_a_changed_file_is_refused_on_resume(mapped, tmp_path):
    counted = iter(range(100))
    with pytest.raises(ss.core.errors.Interrupted):
        run(from_user(mapped()), tmp_path / "run", should_stop=lambda: next(counted) >= 9)
    x = np.load(tmp_path / "x.npy", mmap_mode="r+")
    x[7, 3] += 1
    x.flush()
    with pytest.raises(UserError, match="data"):
        run(from_user(mapped()), tmp_path / "run", resume=True)


def test_rows_that_are_in_two_parts_are_refused(mapped):
    (x, y), (again, _) = mapped(), mapped()
    for other in (x[40:], again[40:]):
        with pytest.raises(UserError, match="the train and val parts of the data have 10 items in common"):
            from_user({"train": (x[:50], y[:50]), "val": (other, y[40:])})
    data = from_user({"train": (x[::2], y[::2]), "val": (again[1::2], y[1::2]), "test": lambda: (x[:0], y[:0])})
    assert (len(data.train), len(data.val)) == (30, 30)


def test_image_folders_read_item_by_item_are_split_as_in_memory(tmp_path):
    pictures(tmp_path / "whole")
    for split in ("train", "val", "test"):
        pictures(tmp_path / "parts" / split, n=4)
    for folder in ("whole", "parts"):
        spec = {"name": f"image_folder:{tmp_path}/{folder}", "size": 8}
        one, other = load(spec), load({**spec, "in_memory": False, "workers": 1})
        assert (type(one.train), type(other.train)) == (Split, Items)
        assert (one.class_names, one.classes) == (other.class_names, other.classes)
        torch.testing.assert_close(one.mean, other.mean)
        for part in ("train", "val"):
            mine, theirs = getattr(one, part).first(20), getattr(other, part).first(20)
            assert mine[0].equal(theirs[0])
            assert mine[1].equal(theirs[1])
        assert one.test().inputs.equal(other.test().first(20)[0])
