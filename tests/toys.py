"""Small networks and data sets that tests share: those of the conformance checks, and what only tests here need."""

from torch import Tensor, nn

from subnet_search.extraction.extract import run as run_config
from subnet_search.extractors import create
from subnet_search.testing.toys import accuracy, conv_bn, mlp, pictures, planted, points
from subnet_search.topology.units import Units
from subnet_search.training import Recipe, Supernet


def supernet(extractor: object, net: nn.Module | None = None, seed: int = 0, **recipe: object) -> Supernet:
    method = create(extractor)
    settings = Recipe(**{"threads": 1, "device": "cpu", **recipe}).resolve(method.published.recipe)
    return Supernet(net or mlp(), method, settings, seed)


def units(tensors: dict[str, Tensor]) -> Units:
    """Single weights as units, of tensors' shapes."""
    return Units({name: tensor.shape for name, tensor in tensors.items()})


__all__ = ["accuracy", "conv_bn", "mlp", "pictures", "planted", "points", "run_config", "supernet", "units"]
