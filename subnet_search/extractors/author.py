"""All that a method's file needs, in one import: what to derive from, what to declare, and tensor functions to choose with.

from subnet_search.extractors.author import Change, Density, Extractor, Paper, Paradigm, Published, Real, register
"""

from subnet_search.core.errors import UserError
from subnet_search.core.search_domains import Int, OneOf, Real
from subnet_search.extractors.base import (
    Allocation,
    Change,
    Clock,
    Density,
    Every,
    Extractor,
    Grow,
    Network,
    Normalise,
    Paper,
    Paradigm,
    Probe,
    Published,
    RelevanceLearner,
    Scope,
    Span,
    Tensors,
)
from subnet_search.extractors.registry import register
from subnet_search.topology.masks import Masks
from subnet_search.topology.regrow import drop, grow, regrow
from subnet_search.topology.samplers import bernoulli_gate, logistic_gate, straight_through
from subnet_search.topology.schedules import cosine, cubic, geometric, linear, sigmoid
from subnet_search.topology.scores import filter_norms, gradient_flow, inverted, magnitude, saliency
from subnet_search.topology.select import allocate, count, keep_by_layer, keep_global, sampled, top_k
from subnet_search.topology.units import EVERY_KIND, Units

__all__ = [
    "EVERY_KIND",
    "Allocation",
    "Change",
    "Clock",
    "Density",
    "Every",
    "Extractor",
    "Grow",
    "Int",
    "Masks",
    "Network",
    "Normalise",
    "OneOf",
    "Paper",
    "Paradigm",
    "Probe",
    "Published",
    "Real",
    "RelevanceLearner",
    "Scope",
    "Span",
    "Tensors",
    "Units",
    "UserError",
    "allocate",
    "bernoulli_gate",
    "cosine",
    "count",
    "cubic",
    "drop",
    "filter_norms",
    "geometric",
    "gradient_flow",
    "grow",
    "inverted",
    "keep_by_layer",
    "keep_global",
    "linear",
    "logistic_gate",
    "magnitude",
    "register",
    "regrow",
    "saliency",
    "sampled",
    "sigmoid",
    "straight_through",
    "top_k",
]
