"""Data that others wrote: image modes, hidden files, headers that claim too much, and damage of every kind."""

import gzip
import io
import json
import os
import random
import struct
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from test_data import arrays, fashion_files, folder_spec, npz, pictures, rows
from toys import run_config

from subnet_search import RunConfig
from subnet_search.cli.render.format import subnetwork_summary
from subnet_search.core.errors import UserError
from subnet_search.data import load, readers
from subnet_search.extraction.config_file import check


def refusal(name):
    """The one line that data is refused with."""
    with pytest.raises(UserError) as caught:
        load(name)
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500
    return str(caught.value)


# --- image folders ---


def one_image(folder, image, name="0.png", **options):
    """A folder of two classes; the first image of the first is this one."""
    pictures(folder)
    (folder / "cat" / "0.png").unlink()
    image.save(folder / "cat" / name, **options)
    return folder


def first_image(folder):
    """The pixels of the first image, (3, 8, 8)."""
    return readers.image_folder(folder, 8)[0][0]


RAMP = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)  # 0 to 252
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP.T], 2)


@pytest.mark.parametrize("name", ["0.png", "0.tif", "0.pgm"])
def test_sixteen_bits_are_scaled(tmp_path, name):
    folder = one_image(tmp_path, Image.fromarray(RAMP.astype(np.uint16) * 257), name)
    assert first_image(folder).equal(torch.from_numpy(RAMP).expand(3, 8, 8))


def test_sixteen_bits_that_use_the_lower_twelve_are_dark_and_not_white(tmp_path):
    folder = one_image(tmp_path, Image.fromarray(RAMP.astype(np.uint16) * 16))
    assert first_image(folder).equal(torch.from_numpy(RAMP // 16).expand(3, 8, 8))


@pytest.mark.parametrize(("kind", "mode"), [(np.int32, "I"), (np.float32, "F")])
def test_thirty_two_bits_are_refused_by_name(tmp_path, kind, mode):
    one_image(tmp_path, Image.fromarray(RAMP.astype(kind)), "0.tif")
    assert refusal(folder_spec(tmp_path)) == (
        f"{tmp_path}/cat/0.tif has 32-bit pixels (mode {mode}) of unknown range: save it with 8 or 16 bits"
    )


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "CMYK", "1"])
def test_other_modes_are_read_as_colours(tmp_path, mode):
    grey = Image.fromarray(RAMP if mode != "1" else (RAMP > 99).astype(np.uint8) * 255)
    image = grey.convert("LA") if mode == "LA" else (grey if mode in ("L", "1") else Image.fromarray(COLOURS)).convert(mode)
    folder = one_image(tmp_path, image, "0.tif" if mode == "CMYK" else "0.png")
    expected = np.asarray(image.convert("RGB"))
    assert len(np.unique(expected)) > 1
    assert first_image(folder).permute(1, 2, 0).equal(torch.from_numpy(expected.copy()))


@pytest.mark.parametrize("split", ["", "train", "test"])
def test_hidden_folders_are_no_classes_and_hidden_files_no_images(tmp_path, split):
    for part in ("train", "test") if split else ("",):
        pictures(tmp_path / part)
    before = load(folder_spec(tmp_path))
    for hidden in (".ipynb_checkpoints", "__MACOSX", "cat/.ipynb_checkpoints", "cat/__MACOSX"):
        (tmp_path / split / hidden).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / split / hidden / "0-checkpoint.png")
    (tmp_path / split / "cat" / "._0.png").write_bytes(b"what macOS keeps beside a file")
    (tmp_path / split / ".DS_Store").write_bytes(b"")
    after = load(folder_spec(tmp_path))
    assert after.classes == before.classes == 2
    assert rows(after.train, after.val, after.test()) == rows(before.train, before.val, before.test())
    assert after.fingerprint == before.fingerprint


def test_a_link_to_nothing_is_named(tmp_path):
    pictures(tmp_path)
    (tmp_path / "cat" / "99.png").symlink_to(tmp_path / "nothing")
    assert f"{tmp_path}/cat/99.png is not a readable image" in refusal(folder_spec(tmp_path))


def test_images_that_would_not_fit_memory(tmp_path, monkeypatch):
    pictures(tmp_path)
    monkeypatch.setattr(os, "sysconf", lambda name: 10)
    assert "at data.size 8 needs 3,840 bytes, more than this machine's memory of 100" in refusal(folder_spec(tmp_path))


def test_a_picture_of_too_many_pixels(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses twice as many
    pictures(tmp_path)
    said = f"{tmp_path}/cat/0.png is not a readable image: DecompressionBombError: Image size (320 pixels) exceeds"
    assert said in refusal(folder_spec(tmp_path))


# --- headers that claim too much ---


def npy_header(shape, kind="|u1"):
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": kind, "fortran_order": False, "shape": shape})
    return file.getvalue()


def archive(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(f"{name}.npy", content)
    return f"npz:{path}"


LABELS = npy_header((40,)) + bytes(40)


@pytest.fixture
def little_memory(monkeypatch):
    """Arrays of a gigabyte cannot be had."""
    empty = np.ndarray

    class Small(np.ndarray):
        def __new__(cls, shape, *args, **kwargs):
            assert np.prod(shape) < 1e9, "memory is taken for what a header claims"
            return empty.__new__(empty, shape, *args, **kwargs)

    monkeypatch.setattr(np, "ndarray", Small)


@pytest.mark.parametrize("shape", [(10**6, 1000, 1000), (2**32, 2**16, 2**16), (2**63, 1, 1)])
def test_an_npz_header_that_claims_too_much(tmp_path, shape, little_memory):
    name = archive(tmp_path / "a.npz", train_images=npy_header(shape) + bytes(100), train_labels=LABELS)
    assert "a.npz is not a readable npz file: train_images has 100 bytes of data for shape" in refusal(name)


def test_a_header_for_less_than_there_is(tmp_path):
    """The checksum covers the array to its end: a part of it would be read unchecked."""
    name = archive(tmp_path / "a.npz", train_images=npy_header((30, 8, 8)) + bytes(40 * 64), train_labels=LABELS)
    assert "train_images has 2,560 bytes of data for shape (30, 8, 8)" in refusal(name)


def test_what_deflate_cannot_give(tmp_path):
    with pytest.raises(UserError, match=r"the shape claims 10,000,000,000,000 bytes in a file of 1,000,000"):
        readers.check_size("the shape", 10**13, 10**6)
    with pytest.raises(UserError, match=r"the shape needs 10,000,000,000,000,000 bytes, more than this machine's memory"):
        readers.check_size("the shape", 10**16)
    readers.check_size("the shape", 10**6, 10**6)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("shape", [(10**6, 1000, 1000), (2**32 - 1,) * 3, (2**31, 2**31, 4)])  # the last is 2**64
def test_an_idx_header_that_claims_too_much(tmp_path, zipped, shape):
    spec = fashion_files(tmp_path, zipped)
    path = tmp_path / ("train-images-idx3-ubyte" + ".gz" * zipped)
    raw = struct.pack(">4I", 0x803, *shape)
    path.write_bytes(gzip.compress(raw) if zipped else raw)
    assert f"{path} is not a valid idx file: shape {shape} claims" in refusal(spec)


@pytest.mark.parametrize("shape", [(40, 28, 28, 28), (40, 8, 8, 2), (40, 8, 8, 0)])
def test_volumes_are_no_images(tmp_path, shape):
    path = npz(tmp_path, train=(np.zeros(shape, np.uint8), np.arange(40) % 4))
    said = refusal(f"npz:{path}")
    assert (
        said
        == f"{path}: train_images has shape {shape}: images (N, H, W, C) need 1, 3 or 4 channels; volumes are not supported"
    )


def test_labels_of_absurdly_many_classes(tmp_path):
    images, labels = arrays()
    labels = labels.astype(np.int64)
    path = npz(tmp_path, train=(images, np.where(labels == 3, 1_999_999, labels)))
    assert refusal(f"npz:{path}") == (
        f"npz:{path}: label 1999999 needs 2000000 outputs, but there are 40 items with 4 different labels: "
        "number the classes from 0"
    )
    path = npz(tmp_path, train=(images, np.where(labels == 3, 999, labels)))
    assert load(f"npz:{path}").classes == 1000  # labels that skip are fine


# --- damage ---


def npz_case(folder):
    path = npz(folder, train=arrays(), val=arrays(8, seed=1), test=arrays(8, seed=2))
    return f"npz:{path}", path


def gzipped_case(folder):
    return fashion_files(folder, True), folder / "train-images-idx3-ubyte.gz"


def idx_case(folder):
    return fashion_files(folder, False), folder / "train-images-idx3-ubyte"


def png_case(folder):
    one_image(folder, Image.fromarray(COLOURS))
    return folder_spec(folder), folder / "cat" / "0.png"


def jpg_case(folder):
    one_image(folder, Image.fromarray(COLOURS), "0.jpg")
    return folder_spec(folder), folder / "cat" / "0.jpg"


def truncated(path, raw, draw):
    path.write_bytes(raw[: draw.randrange(1, len(raw))])


def flipped(path, raw, draw):
    """A byte is changed; of formats without a checksum, one of the header."""
    changed = bytearray(raw)
    changed[draw.randrange(16 if path.name.endswith("ubyte") else 2 if path.suffix == ".jpg" else len(raw))] ^= draw.randrange(
        1, 256
    )
    path.write_bytes(changed)


def other_magic(path, raw, draw):
    path.write_bytes(draw.randbytes(8) + raw[8:])


def emptied(path, raw, draw):
    path.write_bytes(b"")


def folder_instead(path, raw, draw):
    path.unlink()
    path.mkdir()


def noise_instead(path, raw, draw):
    path.write_bytes(draw.randbytes(500))


CASES = (npz_case, gzipped_case, idx_case, png_case, jpg_case)
DAMAGE = [*[truncated] * 3, *[flipped] * 6, other_magic, emptied, folder_instead, noise_instead]
SEEDS = int(os.environ.get("SUBNET_SEARCH_FUZZ", "1"))  # of 65 inputs each; more of them for a longer search


def read(name):
    data = load(name)
    return rows(data.train), rows(data.val), rows(data.test()), data.classes


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.filterwarnings("ignore")  # Pillow's, about damaged metadata
def test_damaged_files_are_refused_in_one_line_or_read_the_same(tmp_path, case, seed):
    name, path = case(tmp_path)
    raw, whole = path.read_bytes(), read(name)
    for number, damage in enumerate(DAMAGE):
        draw = random.Random(f"{case.__name__} {seed} {number}")
        damage(path, raw, draw)
        found, said = None, ""
        try:
            found = read(name)
        except UserError as error:
            said = str(error)
        if found is None:
            assert str(tmp_path) in said
            assert len(said) < 500
            assert len(said.splitlines()) == 1
        else:
            assert found == whole or damage is folder_instead, f"{damage.__name__} {number}"
        if path.is_dir():
            path.rmdir()
        path.write_bytes(raw)


def test_whatever_a_reader_raises_is_one_line(tmp_path, monkeypatch):
    path = npz(tmp_path, train=arrays())

    def raise_oddly(*_):
        raise OverflowError("first line\nsecond" + "x" * 1000)

    monkeypatch.setattr(zipfile, "ZipFile", raise_oddly)
    assert refusal(f"npz:{path}") == f"{path} is not a readable npz file (truncated?): OverflowError: first line"
    long = "npz:" + "x" * 5000  # the operating system refuses such a name
    with pytest.raises(UserError):
        load(long)


# --- a test split that cannot be read, after training ---


def test_a_test_split_that_cannot_be_read_loses_no_training(tmp_path, capsys, caplog):
    path = npz(tmp_path, train=arrays(), test=(arrays()[0], arrays()[1] + 1))
    settings = {"network": "lenet_300_100", "data": f"npz:{path}", "extractor": {"name": "magnitude", "density": 0.5}}
    config = check(RunConfig, {**settings, "recipe": {"epochs": 1, "device": "cpu", "threads": 1}})
    subnet = run_config(config, tmp_path / "run")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    problem = f"npz:{path} (test): label 4 is outside the classes 0 to 3"
    assert (summary["test_accuracy"], summary["test_error"]) == (None, problem)
    assert summary["val_accuracy"] == subnet.metrics["val_accuracy"] is not None
    assert f"the test split was not measured: {problem}" in caplog.text
    subnetwork_summary(summary, "weight")
    assert "not measured: npz:" in " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "run" / "subnetwork.safetensors").is_file()


def test_a_test_split_that_can_be_read_has_no_error(tmp_path):
    path = npz(tmp_path, train=arrays(), test=arrays())
    settings = {"network": "lenet_300_100", "data": f"npz:{path}", "extractor": {"name": "magnitude", "density": 0.5}}
    metrics = run_config(check(RunConfig, {**settings, "recipe": {"epochs": 0, "device": "cpu", "threads": 1}})).metrics
    assert metrics["test_error"] is None
    assert metrics["test_accuracy"] is not None
