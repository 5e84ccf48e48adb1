"""Classify sequences of words of different lengths: an embedding and a transformer encoder with a padding mask.

    cd examples
    subnet-search extract -s network=text_classifier:Encoder -s data=text_classifier:make -s extractor=magnitude

Batches are mappings, which go into the network as keywords; the labels are taken out by their name.
"""

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

WORDS, LENGTH = 20, 12


class Sentences(Dataset):
    """Sequences of 4 to 12 words. The class is 1 when there are more words of the first half of the vocabulary."""

    classes = ("few", "many")

    def __init__(self, count: int = 600, seed: int = 0) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.words = torch.randint(1, WORDS, (count, LENGTH), generator=rng)
        self.lengths = torch.randint(4, LENGTH + 1, (count,), generator=rng)

    def __len__(self) -> int:
        return len(self.words)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        padding = torch.arange(LENGTH) >= self.lengths[index]
        words = self.words[index].masked_fill(padding, 0)
        first = (words[~padding] < WORDS // 2).float().mean()
        return {"words": words, "padding": padding, "label": int(first > 0.5)}


def make(count: int = 600) -> Sentences:
    return Sentences(count)


class Encoder(nn.Module):
    """Words (batch, length) and a padding mask, True where there is no word, to logits (batch, num_classes)."""

    def __init__(self, num_classes: int = 2, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(WORDS, width, padding_idx=0)
        layer = nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(width, num_classes)

    def forward(self, words: Tensor, padding: Tensor) -> Tensor:
        encoded = self.encoder(self.embedding(words), src_key_padding_mask=padding)
        kept = (~padding).unsqueeze(2).float()
        return self.out((encoded * kept).sum(1) / kept.sum(1))
