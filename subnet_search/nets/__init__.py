"""Reference networks and how their weights begin."""

from subnet_search.nets.batch_norm import check_batch_norm
from subnet_search.nets.checkpoints import read_state
from subnet_search.nets.dynamic import gated_layers, make_dynamic, noting_saliency, opened, set_winners
from subnet_search.nets.init import INITS, InitName, initial_weight, initialise, prunable
from subnet_search.nets.spec import NetworkSpec, build, check_output, is_ours, network_names

__all__ = [
    "INITS",
    "InitName",
    "NetworkSpec",
    "build",
    "check_batch_norm",
    "check_output",
    "gated_layers",
    "initial_weight",
    "initialise",
    "is_ours",
    "make_dynamic",
    "network_names",
    "noting_saliency",
    "opened",
    "prunable",
    "read_state",
    "set_winners",
]
