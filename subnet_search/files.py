"""Files that are never half written and never silently wrong: atomic writes, tensors with a hash. No pickle."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from subnet_search.errors import RunError, UserError

if TYPE_CHECKING:
    from torch import Tensor


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old content or the new, never a part.

    Raises RunError that names the file when the disk is full or the folder cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise RunError(f"cannot write {path}: {error.strerror or error}") from error


def save_tensors(path: Path, tensors: "Mapping[str, Tensor]", header: Mapping[str, Any]) -> None:
    """Write tensors and a JSON header to one safetensors file, atomically, with a hash over the tensors."""
    from safetensors.torch import save  # with torch, which writing other files does not need

    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    metadata = {"header": json.dumps({**header, "tensors_sha256": digest(plain)})}
    write_atomically(path, save(plain, metadata))


def load_tensors(path: Path, kind: str) -> "tuple[dict[str, Tensor], dict[str, Any]]":
    """Read what `save_tensors` wrote, on the CPU. Raises UserError when the file is missing, damaged or of another kind."""
    if not path.is_file():
        raise UserError(f"no such {kind}: {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})["header"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        expected = header["tensors_sha256"]
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a readable {kind} (damaged or truncated): {error}") from error
    if digest(tensors) != expected:
        raise UserError(f"{path} is damaged: its content does not match its hash")
    return tensors, header


def digest(tensors: "Mapping[str, Tensor]") -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    import torch

    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(tensor.view(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return total.hexdigest()
