"""Make the optimizer of a run."""

import torch

from subnet_search.training.recipe import Recipe
from subnet_search.training.supernet import Supernet


def make_optimizer(supernet: Supernet, recipe: Recipe) -> torch.optim.Optimizer:
    """The recipe's optimizer for all learned tensors. Relevance has its own rate and decay; rescaling factors no decay.

    While only relevance (with rescaling factors) is learned, it is `relevance_optimizer`, if set.
    """
    relevance, scales = list(supernet.relevance.values()), list(supernet.scales.values())
    apart = {id(parameter) for parameter in (*relevance, *scales)}
    weights = [parameter for parameter in supernet.learned().values() if id(parameter) not in apart]
    decay = recipe.weight_decay if recipe.relevance_decay is None else recipe.relevance_decay
    groups = [
        {"params": weights, "lr": recipe.lr, "weight_decay": recipe.weight_decay},
        {"params": relevance, "lr": recipe.relevance_lr or recipe.lr, "weight_decay": decay},
        {"params": scales, "lr": recipe.scale_lr, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    alone = supernet.learns == "relevance"
    match (alone and recipe.relevance_optimizer) or recipe.optimizer:
        case "sgd":
            nesterov = recipe.nesterov and recipe.momentum > 0
            return torch.optim.SGD(groups, lr=recipe.lr, momentum=recipe.momentum, nesterov=nesterov)
        case "adam":
            return torch.optim.Adam(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999))
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(recipe.momentum, 0.999))
