"""Text for language modelling: items are windows of tokens, one more than the context of the network."""

import hashlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from subnet_search.core.errors import UserError, guarded, shown
from subnet_search.data.batch import Labels
from subnet_search.data.given import from_user
from subnet_search.data.items import Items
from subnet_search.data.parts import files_of
from subnet_search.data.sources import Data, DataSpec, Encoding, reads
from subnet_search.data.values import Values

BYTES = 256


@dataclass(frozen=True, eq=False)
class Windows(Dataset[Tensor]):
    """Windows (context + 1,) int64 of a text, at every `context`-th token.

    Each shares one token with the next, so that every token but the first is predicted once. With `shifted` each is moved
    on by up to `context` - 1 tokens, drawn anew for each item and epoch: then all positions are seen over the epochs.
    tokens: (N,) of any integer type, at least context + 1 of them.
    """

    tokens: np.ndarray
    context: int
    shifted: bool = False

    def __len__(self) -> int:
        return (len(self.tokens) - 1) // self.context

    def __getitem__(self, index: int) -> Tensor:
        moved = int(torch.randint(self.context, ())) if self.shifted else 0
        start = min(index * self.context + moved, len(self.tokens) - self.context - 1)
        return torch.from_numpy(self.tokens[start : start + self.context + 1].astype(np.int64))


@reads("text")
def text(spec: DataSpec, labels: Labels, all_is_test: bool) -> Data:
    """A text, of which the last `val_fraction` is for validation, or the texts train, val and test in a folder."""
    train, val, test = files_of(spec.path, "txt")
    if labels.classes:
        raise UserError(f"{spec.name} has no labels: set task: language_modeling")
    content, held = _content_of(train, spec), None if val is None else _content_of(val, spec)
    vocabulary = None
    if spec.tokens == "characters":
        vocabulary = spec.encoding.vocabulary if spec.encoding else "".join(map(chr, np.unique(content).tolist()))
        spec = spec.model_copy(update={"encoding": Encoding(vocabulary=vocabulary)})
    whole = all_is_test and val is None and test is None
    if held is None and not whole:
        kept = len(content) - round(spec.val_fraction * len(content))
        content, held = content[:kept], content[kept:]
    windows = partial(_windows, spec=spec, vocabulary=vocabulary)
    first = windows(train, content, "training")
    parts = {"train": first, "val": None if held is None else windows(val or train, held, "validation")}
    read_test = None if test is None else lambda: windows(test, _content_of(test, spec), "test")
    given = first if whole else {**parts, "test": read_test}
    found = from_user(given, labels=labels, workers=spec.workers, all_is_test=whole, named=spec)
    assert isinstance(found.train, Items)
    digest = hashlib.sha256(first.tokens.tobytes() + found.train.digest.encode()).hexdigest()
    last = float(BYTES if vocabulary is None else len(vocabulary)) - 1
    values = {path: _with_all(one, int(last) + 1) for path, one in found.train.values.items()}
    shifted = replace(first, shifted=True)
    training = replace(found.train, dataset=shifted, digest=digest, range=("int64", 0.0, last), values=values)
    return replace(found, train=training, class_names=None if vocabulary is None else tuple(vocabulary))


def _with_all(values: Values, vocabulary: int) -> Values:
    """The values of tokens with the last token of the vocabulary as the largest, though the training text may not have it."""
    counts = None if values.counts is None else F.pad(values.counts, (0, vocabulary - len(values.counts)))
    return replace(values, high=float(vocabulary - 1), counts=counts)


def _windows(path: Path, content: np.ndarray, part: str, *, spec: DataSpec, vocabulary: str | None) -> Windows:
    tokens = _tokens(path, content, vocabulary)
    if len(tokens) <= spec.context:
        raise UserError(
            f"{path}: the {part} text has {len(tokens)} tokens; with data.context {spec.context} it needs {spec.context + 1}"
        )
    return Windows(tokens, spec.context)


def _content_of(path: Path, spec: DataSpec) -> np.ndarray:
    """The code points (N,) uint32 of a text, or its bytes (N,) uint8."""
    with guarded(f"{path} is not a readable text"):
        content = path.read_bytes()
        if not content:
            raise UserError(f"{path} is empty")
        if spec.tokens == "bytes":
            return np.frombuffer(content, np.uint8)
        return np.frombuffer(content.decode("utf-8").encode("utf-32-le"), "<u4")


def _tokens(path: Path, content: np.ndarray, vocabulary: str | None) -> np.ndarray:
    """The tokens (N,) of a text. Raises UserError for a character that is not in the vocabulary."""
    if vocabulary is None:
        return content
    known = np.array([ord(character) for character in vocabulary], np.uint32)
    places = np.searchsorted(known, content).clip(max=len(known) - 1)
    if (unknown := known[places] != content).any():
        place = int(unknown.argmax())
        raise UserError(f"{path}: the character {shown(chr(content[place]))} at {place} is not in the vocabulary of the run")
    return places.astype(np.uint8 if len(known) <= BYTES else np.int32)
