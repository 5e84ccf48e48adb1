r"""Batches of a BERT from a configuration, with random weights (needs the package transformers).

    cd examples
    subnet-search extract -s network.name=hf:bert -s data=bert:make -s extractor=magnitude \
        -s "network.options={vocab_size: 50, hidden_size: 32, num_hidden_layers: 2, num_attention_heads: 2}"

`hf:./FOLDER` starts from a folder that `save_pretrained` of transformers has written, with its weights. Batches are mappings
as a tokenizer makes them.
"""

import torch
from torch import Tensor
from torch.utils.data import Dataset

WORDS, LENGTH = 50, 12


class Sentences(Dataset):
    """Sequences of 4 to 12 tokens. The class is 1 when more of them are below 25."""

    classes = ("few", "many")

    def __init__(self, count: int, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.tokens = torch.randint(1, WORDS, (count, LENGTH), generator=rng)
        self.lengths = torch.randint(4, LENGTH + 1, (count,), generator=rng)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, Tensor | int]:
        mask = torch.arange(LENGTH) < self.lengths[index]
        tokens = self.tokens[index].masked_fill(~mask, 0)
        low = (tokens[mask] < WORDS // 2).float().mean()
        return {"input_ids": tokens, "attention_mask": mask.long(), "labels": int(low > 0.5)}


def make(count: int = 600) -> dict[str, Sentences]:
    return {"train": Sentences(count, seed=0), "test": Sentences(count // 4, seed=1)}
