"""Random: weights kept at random, the baseline of every comparison.

With ERK densities it is a strong baseline. `er` is of Mocanu et al. 2018 (arXiv:1707.04780), `erk` of Evci et al. 2020
(arXiv:1911.11134). Counts are exact, not Bernoulli draws. For a random mask of an untrained network, train for no epochs.
"""

from subnet_search.extractors import author as ss
from subnet_search.extractors.methods._drop_and_grow import RandomStart


@ss.register("random")
class Random(RandomStart):
    """Keep weights at random, then train them."""

    paper = ss.Paper(
        "Liu, Chen, Chen, Shen, Mocanu, Wang & Pechenizkiy",
        2022,
        "2202.02643",
        "The Unreasonable Effectiveness of Random Pruning",
        "mask_l uniform over all masks with exactly k_l ones; k by uniform, ER or ERK",
    )
    paradigm = ss.Paradigm("random, before training", "trained", "fixed", True, ss.EVERY_KIND)
    published = ss.Published(
        "VITA-Group/Random_Pruning CIFAR/main.py (CIFAR)",
        {"lr": 0.1, "nesterov": True, "weight_decay": 5e-4, "schedule": "step", "milestones": (0.5, 0.75)},
        epochs=160,
    )
