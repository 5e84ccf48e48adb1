"""Randomness without hidden state: every draw is named by the run's seed and by what it is for.

`generator(seed, "batches", epoch)` gives the same stream in every process and on every resume, so no generator's
state is ever saved. Names are hashed, which keeps streams for different purposes independent.
"""

import hashlib

import torch


def derive(seed: int, *names: int | str) -> int:
    """A 63-bit seed that depends on `seed` and every name, in order."""
    text = "\x1f".join(map(str, (seed, *names)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator(seed: int, *names: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A torch generator on `device`, seeded by `derive`."""
    return torch.Generator(device).manual_seed(derive(seed, *names))
