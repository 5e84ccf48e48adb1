"""Metrics of a network: accuracy, calibration, robustness, cost and latency."""

from subnet_search.evaluation.accuracy import Quality, quality
from subnet_search.evaluation.cost import Cost, cost, layer_macs

__all__ = ["Cost", "Quality", "cost", "layer_macs", "quality"]
