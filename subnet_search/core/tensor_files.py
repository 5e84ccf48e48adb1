"""Atomic file writes, and safetensors files with a JSON header and a hash. No pickle."""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

from subnet_search.core.errors import RunError, UserError, guarded

if TYPE_CHECKING:
    from torch import Tensor

TEMPORARY = re.compile(r"\.(?P<name>.+)\.(?P<pid>\d+)\.tmp")  # name of a file while a process writes it


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file atomically: readers see the old content or the new, also after a crash.

    Temporary files that dead processes left for this name are removed. Raises RunError with the file's name when it cannot
    be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_temporary(path.parent, path.name)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def remove_temporary(folder: Path, name: str | None = None) -> None:
    """Remove temporary files that killed processes left in a folder, for the file `name` or for all files.

    With `name`: those of processes that no longer run. Without: those of every other process, so the caller must hold the
    folder's lock (`RunFolder.held`).
    """
    with contextlib.suppress(OSError):
        for path in list(folder.iterdir()):
            found = TEMPORARY.fullmatch(path.name)
            if found is None or name not in (None, found["name"]) or int(found["pid"]) == os.getpid():
                continue
            if name is None or _is_gone(int(found["pid"])):
                path.unlink()


def _is_gone(pid: int) -> bool:
    """Whether no process on this machine has this id; False where that cannot be determined."""
    if os.name != "posix":
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # the process belongs to another user
        return False
    return False


def damaged(path: Path, kind: str) -> str:
    """Error message for an unreadable file, for `errors.guarded`."""
    return f"{path} is not a readable {kind} (damaged or truncated)"


def save_tensors(path: Path, tensors: "Mapping[str, Tensor]", header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header to one safetensors file, atomically, with a hash over both."""
    from safetensors.torch import save  # imports torch, which other file writes do not need

    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(dict(header))
    write_atomically(path, save(plain, {"header": text, "file_sha256": _hash_of_all(text, plain)}))


def load_tensors(path: Path, kind: str) -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """The tensors (on the CPU) and header of the file `path` that `save_tensors` wrote.

    kind: what the file should be, for the message, as "subnetwork file". Raises UserError when the file is missing, damaged
    or of another kind.
    """
    if not path.is_file():
        raise UserError(f"no such {kind}: {path}")
    with guarded(damaged(path, kind)):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = metadata["header"]
        header = dict(json.loads(text))
        if "file_sha256" in metadata:
            same = metadata["file_sha256"] == _hash_of_all(text, tensors)
        else:  # format 1: the hash covers the tensors only
            same = header.pop("tensors_sha256") == digest(tensors)
    if not same:
        raise UserError(f"{path} is damaged: its content does not match its hash")
    return tensors, header


def header_of(path: Path) -> dict[str, Any]:
    """The header of a file that `save_tensors` wrote, without checking its hash; empty for any other file."""
    try:
        with safe_open(path, framework="pt") as file:
            return dict(json.loads((file.metadata() or {})["header"]))
    except Exception:  # whatever another file makes the reader raise
        return {}


def _hash_of_all(header: str, tensors: "Mapping[str, Tensor]") -> str:
    return hashlib.sha256(f"{header}\n{digest(tensors)}".encode()).hexdigest()


def digest(tensors: "Mapping[str, Tensor]") -> str:
    """SHA-256 over names, dtypes, shapes and bytes, sorted by name."""
    import torch

    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.view(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return total.hexdigest()
