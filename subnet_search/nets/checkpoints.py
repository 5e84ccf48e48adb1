"""Load checkpoints of other projects: read a state dict without running code, and map its names to our networks."""

import logging
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from subnet_search.core.errors import UserError
from subnet_search.nets.naming import PUBLIC_NAMES, public_name

log = logging.getLogger(__name__)
SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".bin")
NESTED = ("state_dict", "model", "ema")  # where checkpoints keep the state dict, beside epochs and optimizers
SHOWN = 3  # names in an error
SAVE = "save only net.state_dict()"
COUNTER = "num_batches_tracked"  # of batch norm: missing in old files, and not used in the forward pass


def read_state(path: Path, key: str = "network.state") -> dict[str, Tensor]:
    """The state dict in a .safetensors file or a torch file (.pt, .pth, .th, .bin), with the names in the file.

    key: of the configuration that names the file, for messages.

    In a checkpoint it is the first of the keys `state_dict`, `model` and `ema`, up to two levels deep, or else the only entry
    that is a mapping of nothing but tensors. Raises UserError for other files, and for a state dict with other objects than
    tensors.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{key} is a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]} file, got {path}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*TorchScript")  # which is refused below
            found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path} is not a state dict: {_refused(error)}") from error
    except Exception as error:  # a damaged file can raise anything
        if "TorchScript" in str(error):
            raise UserError(f"{path} is not a state dict but a file of TorchScript: torch.jit.load reads it; {SAVE}") from error
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
            problem = f"{name!r} is not a tensor but of type {type(value).__name__}{where}"
            raise UserError(f"{path} is not a state dict: {problem}; {SAVE}")
    return dict(found)


def _unwrapped(found: Any) -> tuple[Any, str]:
    """The state dict in a checkpoint, at most two levels down, with its dotted key; the same object and "" without one."""
    place: list[str] = []
    while isinstance(found, Mapping) and len(place) < 2:
        named = [key for key in NESTED if isinstance(found.get(key), Mapping)]
        flat = place or any(isinstance(value, Tensor) for value in found.values())
        others = [] if flat else [key for key, value in found.items() if _only_tensors(value)]  # such as model_state_dict
        if not named and len(others) != 1:
            break
        key = (named or others)[0]
        found = found[key]
        place.append(str(key))
    return found, ".".join(place)


def _only_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(one, Tensor) for one in value.values())


def _refused(error: pickle.UnpicklingError) -> str:
    """Reason why torch refused to unpickle a file."""
    objects = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = f"it contains an object of type {objects[1]}" if objects else "it cannot be read without running code"
    return f"{what}; {SAVE}"


def put_state(
    net: nn.Module, state: Mapping[str, Tensor], name: str, file: str, partial: bool = False, head: str | None = None
) -> None:
    """Load a state dict into the network `name`: with our names or published ones, with or without prefixes.

    partial: load the tensors that fit, and leave the others as they are. head: a layer whose tensors are not loaded.
    Raises UserError with the names or shapes that differ, and what to do; the network is unchanged then.
    """
    own = net.state_dict()
    layers: tuple[Mapping[str, str], ...] = ({}, *PUBLIC_NAMES.get(name, ()))
    base = getattr(net, "base_model_prefix", "")  # of transformers: a file of a model without its head has shorter names
    shorter = [{key.removeprefix(f"{base}."): key for key in own}] if base else []
    namings = [*({public_name(key, called): key for key in own} for called in layers), *shorter]
    pairs = [(found, naming) for found in _prefixes_off(state) for naming in namings]
    found, naming = min(pairs, key=lambda pair: sum(map(len, _different(*pair))))  # the first of equally good matches
    whole = found
    if head:
        of_head = {key for key, target in naming.items() if target.rpartition(".")[0] == head}
        naming = {key: target for key, target in naming.items() if key not in of_head}
        found = {key: value for key, value in found.items() if key not in of_head}
    stored = {own[naming[key]].data_ptr() for key in found if key in naming}
    naming = {key: target for key, target in naming.items() if key in found or own[target].data_ptr() not in stored}  # tied
    missing, more = _different(found, naming)
    shapes = {key: (tuple(value.shape), tuple(own[naming[key]].shape)) for key, value in found.items() if key in naming}
    wrong = {key: both for key, both in shapes.items() if both[0] != both[1]}
    fitting = {naming[key]: found[key] for key in shapes if key not in wrong}
    parameters = {key for key, _ in net.named_parameters(remove_duplicate=False)}
    if parameters and parameters.isdisjoint(fitting):
        theirs, ours = (f"{len(names)} tensors ({_some([*filter(_counts, names)])})" for names in (state, own))
        raise UserError(f"nothing in {file} fits {name}: the file has {theirs}, the network {ours}")
    if partial:
        same = {own[key].data_ptr() for key in fitting}  # also of tied tensors, which a file may have under one name
        kept = [key for key in own if key not in fitting and own[key].data_ptr() not in same]
        used = {key for key in shapes if key not in wrong}
        _warn_partial(name, len(own), kept, [key for key in whole if key not in used], len(whole))
    elif missing or more or wrong:
        problems = [f"{_listed(missing)} of its {sum(map(_counts, own))} tensors missing"] if missing else []
        problems += [f"{_listed(more)} in the file that it does not have"] if more else []
        if wrong and not problems:
            key, (here, there) = next(iter(wrong.items()))
            problems = [f"{key!r} has shape {here}, in the network {there}{f' (and {len(wrong) - 1} more)' * (len(wrong) > 1)}"]
        raise UserError(f"{file} does not fit {name}: {'; '.join(problems)}{_what_to_do(wrong, missing + more, fitting)}")
    own.update(fitting)  # keeps the version metadata of `state_dict`
    net.load_state_dict(own)


def _what_to_do(
    wrong: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]], names: list[str], fitting: Mapping[str, Tensor]
) -> str:
    """How to use a file of which a part fits, for an error."""
    one_layer = not names and len({key.rpartition(".")[0] for key in wrong}) == 1
    if one_layer and all(here[1:] == there[1:] for here, there in wrong.values()):  # of another number of outputs
        return "; network.new_head: true replaces the last layer"
    return f"; network.partial: true loads the {len(fitting)} tensors that fit"


def _warn_partial(name: str, own: int, kept: list[str], unused: list[str], stored: int) -> None:
    """Log what was loaded. own, stored: all tensors of the network and of the file, parameters and buffers."""
    parts = {"initial values are kept in": kept, "not used of the file are": unused}
    rest = "".join(f"; {what} {_listed(names)}" for what, names in parts.items() if names)
    log.warning("%s: %d of its %d tensors are loaded, of the file's %d%s", name, own - len(kept), own, stored, rest)


def _counts(name: str) -> bool:
    """Whether a tensor counts in messages: batch norms' counters of batches do not."""
    return name.rpartition(".")[2] != COUNTER


def _prefixes_off(state: Mapping[str, Tensor]) -> Iterator[Mapping[str, Tensor]]:
    """The state dict unchanged, then without each first part that all names share: of DataParallel, Lightning and so on."""
    yield state
    while all("." in key for key in state) and len({key.partition(".")[0] for key in state}) == 1:
        state = {key.partition(".")[2]: value for key, value in state.items()}
        yield state


def _different(state: Mapping[str, Tensor], naming: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Missing and unexpected names of a state dict."""
    missing = [key for key in naming if key not in state and _counts(key)]
    return missing, [key for key in state if key not in naming and _counts(key)]


def _listed(names: list[str]) -> str:
    return f"{len(names)} ({_some(names)})"


def _some(names: list[str]) -> str:
    return f"{', '.join(map(repr, names[:SHOWN]))}{', ...' if names[SHOWN:] else ''}"
