"""Files: never half written, never silently wrong."""

import errno
import os

import pytest
import torch

from subnet_search.core.errors import RunError, UserError
from subnet_search.core.tensor_files import digest, load_tensors, save_tensors, write_atomically

TENSORS = {
    "float": torch.randn(3, 4, generator=torch.Generator().manual_seed(0)),
    "double": torch.tensor([0.1, -0.0, float("inf")], dtype=torch.float64),
    "half": torch.tensor([0.1, 2.0], dtype=torch.bfloat16),
    "bool": torch.tensor([True, False, True]),
    "bytes": torch.arange(256).to(torch.uint8),
    "scalar": torch.tensor(7),
    "empty": torch.empty(0, 3),
    "transposed": torch.arange(6.0).view(2, 3).T,
    "learned": torch.ones(2, requires_grad=True),
}


# --- writing ---


def test_writing_makes_folders_and_replaces_what_was_there(tmp_path):
    path = tmp_path / "deep" / "er" / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("fails", ["os.replace", "os.fsync"])
def test_a_full_disk_leaves_the_old_content_and_nothing_else(tmp_path, monkeypatch, fails):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "file"
    write_atomically(path, b"old")
    monkeypatch.setattr(fails, full)
    with pytest.raises(RunError, match=f"cannot write {path}: No space left on device"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_not_overwritten(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match=r"cannot write .*folder"):
        write_atomically(tmp_path / "folder", b"new")
    assert list(tmp_path.iterdir()) == [tmp_path / "folder"]


def test_a_file_is_no_folder_to_write_into(tmp_path):
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(RunError, match=r"cannot write .*file/below"):
        write_atomically(tmp_path / "file" / "below", b"new")
    assert (tmp_path / "file").read_bytes() == b"old"


# --- tensors ---


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "tensors"
    save_tensors(path, TENSORS, {"format": 1, "words": ["a", None]})
    return path


def test_tensors_come_back_bit_for_bit(saved):
    tensors, header = load_tensors(saved, "file")
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert tensors[name].equal(tensor)
        assert not tensors[name].requires_grad
    assert header == {"format": 1, "words": ["a", None]}


def test_tensors_that_share_memory_are_both_kept(tmp_path):
    whole = torch.arange(4.0)
    save_tensors(tmp_path / "file", {"whole": whole, "part": whole[1:]}, {})
    assert load_tensors(tmp_path / "file", "file")[0]["part"].tolist() == [1, 2, 3]


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=f"no such checkpoint: {tmp_path}/none"):
        load_tensors(tmp_path / "none", "checkpoint")


@pytest.mark.parametrize("length", [0, 4, 8, 100, -400, -1])
def test_a_truncated_file(saved, length):
    saved.write_bytes(saved.read_bytes()[:length])
    with pytest.raises(UserError, match=f"{saved} is not a readable checkpoint"):
        load_tensors(saved, "checkpoint")


@pytest.mark.parametrize("position", [0.5, 0.9])  # among the tensors
def test_a_damaged_byte(saved, position):
    raw = bytearray(saved.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")  # where the header ends
    raw[start + int(position * (len(raw) - start))] ^= 1
    saved.write_bytes(raw)
    with pytest.raises(UserError, match=f"{saved} is damaged"):
        load_tensors(saved, "checkpoint")


@pytest.mark.parametrize("position", [0, 9])
def test_a_damaged_header(saved, position):
    raw = bytearray(saved.read_bytes())
    raw[position] ^= 0x40
    saved.write_bytes(raw)
    with pytest.raises(UserError, match=f"{saved} is not a readable checkpoint"):
        load_tensors(saved, "checkpoint")


def test_a_file_of_another_program(tmp_path):
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(3)}, tmp_path / "file")
    with pytest.raises(UserError, match="is not a readable checkpoint"):
        load_tensors(tmp_path / "file", "checkpoint")


# --- hashes ---

EIGHT = torch.arange(8.0)


def test_a_hash_does_not_depend_on_the_order_or_the_layout():
    other = EIGHT.view(2, 4)
    assert digest({"a": EIGHT, "b": other}) == digest({"b": other.T.contiguous().T, "a": EIGHT.clone()})


@pytest.mark.parametrize(
    "other",
    [
        {"b": EIGHT},  # another name
        {"a": torch.cat([torch.tensor([1e-45]), EIGHT[1:]])},  # one bit
        {"a": EIGHT.view(2, 4)},  # another shape
        {"a": EIGHT.view(torch.int32)},  # the same bytes of another type
        {"a": EIGHT, "b": torch.empty(0)},  # one more, without content
        {"a": torch.cat([torch.tensor([-0.0]), EIGHT[1:]])},
    ],
    ids=["name", "value", "shape", "type", "empty", "minus zero"],
)
def test_a_hash_sees_every_difference(other):
    assert digest(other) != digest({"a": EIGHT})


def test_a_hash_for_ever():
    # SHA-256 of b"a torch.float32 (2,)\n" and the bytes 00 00 80 3f 00 00 00 c0.
    assert digest({"a": torch.tensor([1.0, -2.0])}) == "8acddc66741bf8853d4833ef918b8df7bd1df9077cc95d1093ca8a10a37c9ebe"
