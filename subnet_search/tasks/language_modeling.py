"""The next token of a sequence: cross-entropy on logits (batch, tokens, vocabulary)."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from subnet_search.core.errors import RunError, UserError
from subnet_search.core.nested import shapes_in
from subnet_search.data import Data, Values, split_batch
from subnet_search.evaluation.items import Items, ratio
from subnet_search.nets import call, logits_of, outputs_hint
from subnet_search.tasks.base import LogitsTask, Network, cross_entropy, got_output, in_parts, part_name, unfit
from subnet_search.tasks.predictions import NextTokenPrediction

DIMS = 2  # of token ids in a batch
IGNORED = -100  # label of tokens that do not count, as Hugging Face's collators set it
TOKENS, MASK = "input_ids", "attention_mask"
WANTED = "tokens (N, T + 1), a pair (inputs (N, T), targets (N, T)), or a mapping with input_ids (N, T), all of whole numbers"
PATHS = ("labels", "inputs", f"inputs.{TOKENS}")  # where token ids are in a batch


class LanguageModeling(LogitsTask):
    """Predict the next token at each place of a sequence.

    A batch is one of

    tokens (N, T + 1)                        inputs are all but the last, targets all but the first
    (inputs (N, T), targets (N, T))          targets are the next tokens already
    {input_ids (N, T), [attention_mask], [labels (N, T)], ...}   as for Hugging Face's models: labels have the places of
                                             input_ids, and are shifted by one here. Without labels they are input_ids, where
                                             attention_mask is not 0

    Targets of -100 do not count. Of a mapping, everything but the labels is passed to the network by keyword. Metrics over
    all tokens that count: loss (mean cross-entropy in nats a token), perplexity (its exponential) and bits_per_byte.
    """

    name: Literal["language_modeling"] = "language_modeling"
    vocabulary: int | None = Field(default=None, ge=2)
    """Number of tokens. Default: the largest token of the training items, plus 1."""
    bytes_per_token: float = Field(default=1.0, gt=0)
    """Mean length of a token in bytes of text, for bits_per_byte: bits a token, divided by this."""

    leading: ClassVar[str] = "loss"
    directions: ClassVar = {"loss": "minimize", "perplexity": "minimize", "bits_per_byte": "minimize"}
    predicted_at_once: ClassVar[int] = 16
    any_length: ClassVar[bool] = True

    def check_data(self, data: Data) -> None:
        vocabulary = self.outputs(data)
        for part in data.values:
            values, name = _tokens(data, part), part_name(data, part)
            for path, found in values.items():
                if found.dims != DIMS or found.dtype.startswith("float"):
                    raise unfit(data, part, self.name, WANTED, found)
                if found.low < 0 and not (path == "labels" and found.low == IGNORED):
                    raise UserError(f"{name}: token {found.low:.0f} is below 0; targets that do not count are {IGNORED}")
                if found.high >= vocabulary:
                    raise UserError(f"{name}: token {found.high:.0f} is outside the vocabulary, 0 to {vocabulary - 1}")
            shape = values["inputs"].shape if list(values) == ["inputs"] else None
            if shape is not None and shape[0] < 2:
                raise UserError(f"{name}: {self.name} needs at least two tokens in each item")

    def outputs(self, data: Data) -> int:
        return self.vocabulary or max(2, int(max(found.high for found in _tokens(data, "train").values())) + 1)

    def split(self, batch: Any) -> tuple[Any, Tensor]:
        """What the network is called with, and the next token at each place (N, T); -100 does not count."""
        inputs, labels = split_batch(batch, self.labels)
        if isinstance(inputs, Mapping):
            tokens = inputs[TOKENS]
            if labels is None:
                labels = tokens.masked_fill(inputs[MASK] == 0, IGNORED) if MASK in inputs else tokens
            following = torch.full_like(tokens[:, :1], IGNORED)  # of the last token
            return inputs, torch.cat([labels[:, 1:].to(tokens.dtype), following], 1).long()
        if labels is None:
            return inputs[:, :-1].long(), inputs[:, 1:].long()
        return inputs.long(), labels.long()

    def criterion(self, logits: Tensor, labels: Any, label_smoothing: float = 0.0) -> Tensor:
        """The mean cross-entropy over all tokens of the batch that count."""
        total, tokens = cross_entropy(logits, labels, IGNORED, None, label_smoothing)
        return total / tokens.clamp(min=1)

    def measure(self, network: Network, batches: Iterable[Any]) -> dict[str, Any]:
        nats, tokens = 0.0, 0
        for logits, targets in self._parts(network, batches):
            total, counted = cross_entropy(logits, targets, IGNORED)
            nats, tokens = nats + total.item(), tokens + int(counted)
        return self._metrics(nats, tokens)

    def measure_items(self, network: Network, batches: Iterable[Any]) -> tuple[dict[str, Any], Items]:
        found = []
        for logits, targets in self._parts(network, batches):
            losses = F.cross_entropy(logits.transpose(1, 2), targets, ignore_index=IGNORED, reduction="none")
            found.append(torch.stack([losses.double().sum(1), (targets != IGNORED).double().sum(1)], 1).cpu())
        rows = torch.cat(found)
        nats, tokens = rows.sum(0).tolist()
        return self._metrics(nats, int(tokens)), Items(rows, ratio)

    def _parts(self, network: Network, batches: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits (items, tokens, vocabulary) and targets (items, tokens), of few enough items to fit in memory."""
        for batch in batches:
            places = self.split(batch)[1].shape[1]
            for inputs, targets in map(self.split, in_parts([batch], places, self.vocabulary or 2**16)):
                logits = logits_of(call(network, inputs)).float()
                if int(targets.max()) >= logits.shape[-1]:
                    raise RunError(f"token {int(targets.max())} is outside the vocabulary, 0 to {logits.shape[-1] - 1}")
                yield logits, targets

    def _metrics(self, nats: float, tokens: int) -> dict[str, Any]:
        """The metrics of a loss in nats, summed over this number of tokens."""
        if not tokens:
            raise RunError(f"the items have no token that counts: all targets are {IGNORED}")
        loss = nats / tokens
        perplexity = math.exp(loss) if loss < 700 else math.inf
        return {"loss": loss, "perplexity": perplexity, "bits_per_byte": loss / math.log(2) / self.bytes_per_token}

    def check_output(self, output: Any, batch: Any, outputs: int | None, name: str, when: str = "") -> None:
        logits, (_, targets) = logits_of(output), self.split(batch)
        if not isinstance(logits, Tensor) or logits.dim() != 3 or logits.shape[:2] != targets.shape:
            wanted = f"(batch, tokens, vocabulary) = {(*targets.shape, outputs or 2)}"
            raise UserError(f"{name} must return logits of shape {wanted}{when}, got {got_output(output)}")
        if logits.shape[2] < (outputs or 1):
            raise UserError(
                f"{name} has {logits.shape[2]} outputs for each token{when}, but the vocabulary has {outputs}"
                f"{outputs_hint(name, outputs)}"
            )

    def answer(self, output: Any, inputs: Any) -> Tensor:
        """The logits of the last token (N, vocabulary): the last that is not masked."""
        logits: Tensor = logits_of(output)
        if isinstance(inputs, Mapping) and MASK in inputs:
            places = torch.arange(logits.shape[1], device=logits.device)
            last = (places * (inputs[MASK] != 0)).argmax(1)
            return logits[torch.arange(len(logits), device=logits.device), last]
        return logits[:, -1]

    def prediction(self, answers: Any, outputs: int, names: tuple[str, ...] | None) -> NextTokenPrediction:
        probabilities = (answers[:, :outputs] if outputs else answers).float().softmax(1)
        return NextTokenPrediction(probabilities.argmax(1), probabilities)


def _tokens(data: Data, part: str) -> dict[str, Values]:
    """The values of the tokens of a part, by path. Raises UserError when there are none."""
    found = {path: values for path in PATHS if (values := data.values[part].get(path)) is not None}
    if not any(path.startswith("inputs") for path in found):
        raise unfit(data, part, "language_modeling", WANTED, shapes_in(split_batch(data.first(1), data.label_key)[0]))
    return found
