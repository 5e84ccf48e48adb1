"""Edge-popup: the highest scores of every layer of an untrained network.

Section 3, equation 4. Scores begin as kaiming_uniform(a = sqrt 5), which is U(-b, b) with b = 1 / sqrt(fan_in). The paper's
best weights are signed constants (network.init: signed_constant); `scaled` is its scaled Kaiming normal.

The authors' `prune_rate` is the fraction *kept*; here it is `density`. They drop int((1 - density) * n) weights of each layer,
which rounds the number kept up; our counts add up to the exact total.
"""

from subnet_search.extractors import author as ss
from subnet_search.extractors.methods._top_scores import TopScores


@ss.register("edge_popup")
class EdgePopup(TopScores):
    """Learn scores, keep the highest of every layer.

    Keep the highest scores of every layer of an untrained network, and learn the scores.
    """

    paper = ss.Paper(
        "Ramanujan, Wortsman, Kembhavi, Farhadi & Rastegari",
        2020,
        "1911.13299",
        "What's Hidden in a Randomly Weighted Neural Network?",
        "z = 1[|s| in the top k of its layer]; dL/ds = dL/dz",
    )
    paradigm = ss.Paradigm("learned on frozen weights", "initial", "fixed", False, ss.EVERY_KIND)
    published = ss.Published(
        "allenai/hidden-networks configs/smallscale/conv6/conv6_usc_unsigned.yml (CIFAR-10, Conv6)",
        {"lr": 0.1, "weight_decay": 1e-4, "schedule": "cosine"},
        epochs=100,
        note="ResNet-18 on CIFAR-10: weight decay 5e-4, batch 256. ImageNet: lr 0.256, momentum 0.875, weight decay 3.05e-5, "
        "batch 256, label smoothing 0.1, 5 epochs of warm-up.",
    )

    keeps_count = True
