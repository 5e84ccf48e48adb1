"""Load checkpoints of other projects: read a state dict without running code, and map its names to our networks."""

import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from subnet_search.core.errors import UserError
from subnet_search.nets.naming import PUBLIC_NAMES, public_name

SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".bin")
NESTED = ("state_dict", "model", "ema")  # where checkpoints keep the state dict, beside epochs and optimizers
PREFIXES = ("module.", "_orig_mod.")  # of torch's DataParallel, and of torch.compile
SHOWN = 3  # names in an error
COUNTER = "num_batches_tracked"  # of batch norm: missing in old files, and not used in the forward pass


def read_state(path: Path, key: str = "network.state") -> dict[str, Tensor]:
    """The state dict in a .safetensors file or a torch file (.pt, .pth, .th, .bin), with the names in the file.

    key: of the configuration that names the file, for messages.

    In a checkpoint it is the first of the keys `state_dict`, `model` and `ema`, up to two levels deep. Raises UserError for
    other files, and for a state dict with other objects than tensors.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{key} is a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file, got {path}")
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is not a state dict: {_refused(error)}") from error
    except Exception as error:  # a damaged file can raise anything
        raise UserError(
            f"{path} is not a readable state dict: {str(error).splitlines()[0] if str(error) else error!r}"
        ) from error
    found, place = _unwrapped(found)
    if not isinstance(found, Mapping):
        raise UserError(f"{path} is not a state dict, tensors by name, but of type {type(found).__name__}")
    if not found:
        raise UserError(f"{path} is not a state dict: {place or 'it'} is empty")
    for name, value in found.items():
        if not isinstance(value, Tensor):
            where = f" in {place}" if place else f" (nor does it have {', '.join(NESTED[:-1])} or {NESTED[-1]})"
            raise UserError(f"{path} is not a state dict: {name!r} is not a tensor but of type {type(value).__name__}{where}")
    return dict(found)


def _unwrapped(found: Any) -> tuple[Any, str]:
    """The state dict in a checkpoint, at most two levels down, with its dotted key; the same object and "" without one."""
    place: list[str] = []
    while isinstance(found, Mapping) and len(place) < 2:
        key = next((key for key in NESTED if isinstance(found.get(key), Mapping)), None)
        if key is None:
            break
        found = found[key]
        place.append(key)
    return found, ".".join(place)


def _refused(error: pickle.UnpicklingError) -> str:
    """Reason why torch refused to unpickle a file."""
    objects = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = f"it contains an object of type {objects[1]}" if objects else "it cannot be read without running code"
    return f"{what}; save only net.state_dict()"


def put_state(net: nn.Module, state: Mapping[str, Tensor], name: str, file: str) -> None:
    """Load a state dict into the network `name`: with our names or published ones, with or without prefixes.

    Raises UserError with the names or shapes that differ; the network is unchanged then.
    """
    own = net.state_dict()
    layers: tuple[Mapping[str, str], ...] = ({}, *PUBLIC_NAMES.get(name, ()))
    namings = [{public_name(key, called): key for key in own} for called in layers]
    pairs = [(found, naming) for found in _prefixes_off(state) for naming in namings]
    found, naming = min(pairs, key=lambda pair: sum(map(len, _different(*pair))))  # the first of equally good matches
    missing, more = _different(found, naming)
    problems = [f"{_listed(missing)} of its {len(own)} tensors missing"] if missing else []
    problems += [f"{_listed(more)} in the file that it does not have"] if more else []
    if not problems:
        shapes = {key: (tuple(value.shape), tuple(own[naming[key]].shape)) for key, value in found.items()}
        wrong = [f"{key!r} has shape {here}, in the network {there}" for key, (here, there) in shapes.items() if here != there]
        problems = [wrong[0] + (f" (and {len(wrong) - 1} more)" if wrong[1:] else "")] if wrong else []
    if problems:
        raise UserError(f"{file} does not fit {name}: {'; '.join(problems)}")
    own.update({naming[key]: value for key, value in found.items()})  # keeps the version metadata of `state_dict`
    net.load_state_dict(own)


def _prefixes_off(state: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """The state dict unchanged, then without each prefix that all names have."""
    yield state
    while prefix := next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
        yield state


def _different(state: Mapping[str, Tensor], naming: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Missing and unexpected names of a state dict."""
    missing = [key for key in naming if key not in state and key.split(".")[-1] != COUNTER]
    return missing, [key for key in state if key not in naming]


def _listed(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(map(repr, names[:SHOWN]))}{', ...' if names[SHOWN:] else ''})"
