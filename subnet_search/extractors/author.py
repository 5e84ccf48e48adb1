"""All that a method file imports: what to derive from, what to declare, and functions on tensors.

from subnet_search.extractors import author as ss
"""

from annotated_types import Ge, Gt, Le, Lt

from subnet_search.core.errors import UserError, invalid
from subnet_search.core.search_domains import Int, OneOf, Real
from subnet_search.core.tensor_files import load_tensors
from subnet_search.extractors.base import Change, Extractor, Paper, Paradigm, Published, RelevanceLearner, Rewind
from subnet_search.extractors.context import Clock, Network, Probe, Span, Tensors
from subnet_search.extractors.fields import (
    Allocation,
    ChannelDensity,
    Density,
    DropFraction,
    Every,
    Grow,
    Images,
    Invert,
    LearnedRescaling,
    Normalise,
    PhaseEnd,
    PlainAllocation,
    PlainScope,
    Rescaling,
    Rounds,
    Scope,
    Strength,
    Until,
)
from subnet_search.extractors.registry import create, register
from subnet_search.topology.budget import budget_penalty
from subnet_search.topology.channels import Channels
from subnet_search.topology.masks import Masks, unpack
from subnet_search.topology.regrow import drop, grow, regrow
from subnet_search.topology.samplers import bernoulli_gate, logistic_gate, straight_through
from subnet_search.topology.schedules import cosine, cubic, geometric, linear, sigmoid
from subnet_search.topology.scores import (
    activity,
    distances,
    filter_norms,
    gradient_flow,
    inverted,
    local_community,
    magnitude,
    magnitude_and_gradient,
    map_ranks,
    relative_importance,
    saliency,
    scales,
)
from subnet_search.topology.select import LayerShares, allocate, count, keep_by_layer, keep_global, layer_name, sampled, top_k
from subnet_search.topology.units import EVERY_KIND, Units

__all__ = [
    "EVERY_KIND",
    "Allocation",
    "Change",
    "ChannelDensity",
    "Channels",
    "Clock",
    "Density",
    "DropFraction",
    "Every",
    "Extractor",
    "Ge",
    "Grow",
    "Gt",
    "Images",
    "Int",
    "Invert",
    "LayerShares",
    "Le",
    "LearnedRescaling",
    "Lt",
    "Masks",
    "Network",
    "Normalise",
    "OneOf",
    "Paper",
    "Paradigm",
    "PhaseEnd",
    "PlainAllocation",
    "PlainScope",
    "Probe",
    "Published",
    "Real",
    "RelevanceLearner",
    "Rescaling",
    "Rewind",
    "Rounds",
    "Scope",
    "Span",
    "Strength",
    "Tensors",
    "Units",
    "Until",
    "UserError",
    "activity",
    "allocate",
    "bernoulli_gate",
    "budget_penalty",
    "cosine",
    "count",
    "create",
    "cubic",
    "distances",
    "drop",
    "filter_norms",
    "geometric",
    "gradient_flow",
    "grow",
    "invalid",
    "inverted",
    "keep_by_layer",
    "keep_global",
    "layer_name",
    "linear",
    "load_tensors",
    "local_community",
    "logistic_gate",
    "magnitude",
    "magnitude_and_gradient",
    "map_ranks",
    "register",
    "regrow",
    "relative_importance",
    "saliency",
    "sampled",
    "scales",
    "sigmoid",
    "straight_through",
    "top_k",
    "unpack",
]
