"""Measuring a network: how right it is, how sure, how sturdy, and what it costs."""

from subnet_search.evaluation.accuracy import Quality, quality
from subnet_search.evaluation.cost import Cost, cost, layer_macs

__all__ = ["Cost", "Quality", "cost", "layer_macs", "quality"]
