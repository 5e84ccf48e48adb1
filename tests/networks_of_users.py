"""Small networks as users write them: several inputs, keywords, masks, and outputs that are no single tensor.

`NETWORKS` has a network, its data, and its task for each; the data is learned a little in one epoch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ITEMS, WORDS, LENGTH = 60, 20, 6


class TwoHeads(nn.Module):
    """An image and words, by keyword, to two outputs in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.words = nn.Embedding(WORDS, 8)
        self.joint = nn.Linear(24, 32)
        self.kind, self.size = nn.Linear(32, 3), nn.Linear(32, 1)

    def forward(self, image: Tensor, words: Tensor) -> dict[str, Tensor]:
        seen = self.norm(self.conv(image)).relu().mean((2, 3))
        both = self.joint(torch.cat([seen, self.words(words).mean(1)], 1)).relu()
        return {"kind": self.kind(both), "size": self.size(both).squeeze(1)}


class TwoHeadsInATuple(TwoHeads):
    """The same with the outputs in a tuple."""

    def forward(self, image: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        found = super().forward(image, words)
        return found["kind"], found["size"]


class BothLosses:
    """The sum of the losses of two outputs."""

    directions = {"accuracy": "maximize"}

    def __init__(self, leading: str = "loss") -> None:
        self.leading = leading

    def outputs(self, network: Callable[..., Any], batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        found = network(image=batch["image"], words=batch["words"])
        return (found["kind"], found["size"]) if isinstance(found, dict) else found

    def loss(self, network: Callable[..., Any], batch: dict[str, Tensor]) -> Tensor:
        kind, size = self.outputs(network, batch)
        return F.cross_entropy(kind, batch["kind"]) + F.mse_loss(size, batch["size"])

    def metrics(self, network: Callable[..., Any], batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"accuracy": (self.outputs(network, batch)[0].argmax(1) == batch["kind"]).float().mean()}


class Pair(nn.Module):
    """Two tensors, each through its own layer, to classes."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(5, 32), nn.Linear(7, 32)
        self.last = nn.Linear(64, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.last(torch.cat([self.left(left).relu(), self.right(right).relu()], 1))


class Encoder(nn.Module):
    """Words and a padding mask (True: padding) through a transformer, to classes."""

    def __init__(self, width: int = 16, inner: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, width)
        layer = nn.TransformerEncoderLayer(width, 4, inner, dropout=0.1, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)
        self.last = nn.Linear(width, 3)

    def forward(self, tokens: Tensor, padding: Tensor) -> Tensor:
        found = self.layers(self.words(tokens), src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(2).to(found.dtype)
        return self.last((found * kept).sum(1) / kept.sum(1).clamp(min=1))


class Recurrent(nn.Module):
    """Words through an LSTM, to classes."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 8)
        self.lstm = nn.LSTM(8, 16, batch_first=True)
        self.hidden, self.last = nn.Linear(16, 32), nn.Linear(32, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        _, (state, _) = self.lstm(self.words(tokens))
        return self.last(self.hidden(state[-1]).relu())


class Block(nn.Module):
    """A transformer block in which each position sees those before it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        count, length, width = x.shape
        q, k, v = (
            part.view(count, length, self.heads, width // self.heads).transpose(1, 2)
            for part in self.qkv(self.norm1(x)).split(width, dim=2)
        )
        seen = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(seen.transpose(1, 2).reshape(count, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))  # type: ignore[no-any-return]


class Logits:
    """What a language model returns: an object that torch does not look into."""

    def __init__(self, logits: Tensor) -> None:
        self.logits = logits


class Language(nn.Module):
    """Tokens to the logits of the next token, (N, T, words)."""

    def __init__(self, width: int = 16, as_object: bool = True) -> None:
        super().__init__()
        self.as_object = as_object
        self.words, self.places = nn.Embedding(WORDS, width), nn.Embedding(LENGTH, width)
        self.blocks = nn.ModuleList(Block(width, 2) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, WORDS, bias=False)

    def forward(self, tokens: Tensor) -> Any:
        x = self.words(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return Logits(logits) if self.as_object else logits


class NextToken:
    """The loss of predicting each token from those before it."""

    def loss(self, network: Callable[..., Any], batch: Any) -> Tensor:
        tokens, following = batch
        found = network(tokens)
        logits = found if isinstance(found, Tensor) else found.logits
        return F.cross_entropy(logits.flatten(0, 1), following.flatten())


class UNet(nn.Module):
    """Images to classes of pixels, (N, classes, H, W), with connections by torch.cat."""

    def __init__(self, classes: int = 2, width: int = 16) -> None:
        super().__init__()
        self.down1, self.norm1 = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.down2, self.norm2 = nn.Conv2d(width, 2 * width, 3, padding=1), nn.BatchNorm2d(2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.joint = nn.Conv2d(2 * width, width, 3, padding=1)
        self.last = nn.Conv2d(width, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        first = self.norm1(self.down1(image)).relu()
        second = self.norm2(self.down2(F.max_pool2d(first, 2))).relu()
        return self.last(self.joint(torch.cat([first, self.up(second)], 1)).relu())  # type: ignore[no-any-return]


class Pixels:
    """The loss of each pixel's class."""

    def loss(self, network: Callable[..., Any], batch: Any) -> Tensor:
        images, labels = batch
        return F.cross_entropy(network(images), labels)


@dataclass
class Output:
    """The output of a network of a model hub."""

    loss: Tensor | None
    logits: Tensor


class FromHub(nn.Module):
    """A classifier of words as in a model hub: keywords, a mask of numbers (1: no padding), and the loss if it gets labels."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, 16)
        self.dense, self.last = nn.Linear(16, 32), nn.Linear(32, 3)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> Output:
        assert input_ids is not None
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        mean = (self.words(input_ids) * mask.unsqueeze(2)).sum(1) / mask.sum(1, keepdim=True)
        logits = self.last(self.dense(mean).relu())
        return Output(None if labels is None else F.cross_entropy(logits, labels), logits)


class OwnLoss:
    """The loss that the network computes itself."""

    def loss(self, network: Callable[..., Any], batch: dict[str, Tensor]) -> Tensor:
        return network(**batch, return_dict=True).loss  # type: ignore[no-any-return]


def _drawn() -> tuple[torch.Generator, Tensor]:
    rng = torch.Generator().manual_seed(0)
    return rng, torch.randint(0, 3, (ITEMS,), generator=rng)


def words_and_lengths() -> tuple[Tensor, Tensor, Tensor]:
    """Tokens (N, T) int64, whether each is no padding (N, T) bool, and classes (N,); padding is at the end."""
    rng, kind = _drawn()
    tokens = torch.randint(1, WORDS, (ITEMS, LENGTH), generator=rng)
    tokens[:, 0] = kind + 1
    lengths = torch.randint(2, LENGTH + 1, (ITEMS, 1), generator=rng)
    there = torch.arange(LENGTH) < lengths
    return tokens * there, there, kind


def images_and_words() -> dict[str, Tensor]:
    rng, kind = _drawn()
    image = torch.randn(ITEMS, 1, 8, 8, generator=rng) + kind.view(-1, 1, 1, 1)
    words = torch.randint(0, WORDS, (ITEMS, LENGTH), generator=rng)
    return {"image": image, "words": words, "kind": kind, "size": words.float().mean(1) / 100}


def pairs() -> tuple[tuple[Tensor, Tensor], Tensor]:
    rng, kind = _drawn()
    left, right = torch.randn(ITEMS, 5, generator=rng), torch.randn(ITEMS, 7, generator=rng)
    left[:, 0] += kind
    return (left, right), kind


def padded_words() -> tuple[tuple[Tensor, Tensor], Tensor]:
    tokens, there, kind = words_and_lengths()
    return (tokens, ~there), kind


def words() -> tuple[Tensor, Tensor]:
    tokens, _, kind = words_and_lengths()
    return tokens, kind


def sentences() -> tuple[Tensor, Tensor]:
    rng, _ = _drawn()
    tokens = torch.randint(0, WORDS, (ITEMS, LENGTH + 1), generator=rng)
    return tokens[:, :-1], tokens[:, 1:]


def pixels() -> tuple[Tensor, Tensor]:
    rng, _ = _drawn()
    images = torch.randn(ITEMS, 3, 8, 8, generator=rng)
    return images, (images.sum(1) > 0).long()


def hub_words() -> dict[str, Tensor]:
    tokens, there, kind = words_and_lengths()
    return {"input_ids": tokens, "attention_mask": there.long(), "labels": kind}


@dataclass(frozen=True)
class Case:
    """A network, its data and its task."""

    make: Callable[[], nn.Module]
    data: Callable[[], Any]
    task: Callable[[], Any] = lambda: None
    inputs: tuple[str, ...] = ("input",)  # names in the ONNX model
    outputs: tuple[str, ...] = ("logits",)
    how: str = ""  # to prepare an input

    def network(self) -> nn.Module:
        """The network with its initial weights, the same on every call."""
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.make()


TOKENS = "int64 (N, 6): indices, such as token ids, from 0 to 19"
BOTH = "image float32 (N, 1, 8, 8), words int64 (N, 6) from 1 to 19"
PADDED = "tokens int64 (N, 6) from 0 to 19, padding bool (N, 6)"
MASKED = "input_ids int64 (N, 6) from 0 to 19, attention_mask int64 (N, 6) from 0 to 1"
IMAGES = "float32 (N, 3, 8, 8): values as in the data, not normalised"
NETWORKS = {
    "two heads": Case(TwoHeads, images_and_words, BothLosses, ("image", "words"), ("kind", "size"), BOTH),
    "two heads in a tuple": Case(TwoHeadsInATuple, images_and_words, BothLosses, ("image", "words"), ("0", "1"), BOTH),
    "pair": Case(Pair, pairs, inputs=("left", "right"), how="left float32 (N, 5), right float32 (N, 7)"),
    "encoder": Case(Encoder, padded_words, inputs=("tokens", "padding"), how=PADDED),
    "recurrent": Case(Recurrent, words, how=TOKENS),
    "language": Case(Language, sentences, NextToken, how=TOKENS),
    "language, a tensor": Case(lambda: Language(as_object=False), sentences, NextToken, how=TOKENS),
    "u-net": Case(UNet, pixels, Pixels, how=IMAGES),
    "hub": Case(FromHub, hub_words, inputs=("input_ids", "attention_mask"), how=MASKED),
    "hub, own loss": Case(
        FromHub,
        hub_words,
        OwnLoss,
        ("input_ids", "attention_mask"),
        how=f"{MASKED}, return_dict = True",
    ),
}
