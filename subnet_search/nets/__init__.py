"""Reference networks, weight initialisation, and the weights that can be pruned."""

from subnet_search.nets.batch_norm import check_batch_norm, has_batch_norm, never_trained, recompute_statistics
from subnet_search.nets.checkpoints import put_state, read_state
from subnet_search.nets.copying import detached_copy, own_copy
from subnet_search.nets.dynamic import gated_layers, make_dynamic, noting_saliency, opened, set_winners
from subnet_search.nets.head import head_of, replace_head
from subnet_search.nets.init import INITS, InitName, initial_weight, initialise
from subnet_search.nets.outputs import (
    LogitsOnly,
    arguments,
    call,
    check_accepts,
    check_logits,
    check_types,
    compared,
    logits_of,
    not_accepted,
    outputs_in,
    unwrapped,
    without_fused_attention,
)
from subnet_search.nets.sources import is_ours, is_own, network_names, outputs_hint
from subnet_search.nets.spec import NetworkSpec, build, file_sha256
from subnet_search.nets.weights import inputs_first, left_whole, prunable

__all__ = [
    "INITS",
    "InitName",
    "LogitsOnly",
    "NetworkSpec",
    "arguments",
    "build",
    "call",
    "check_accepts",
    "check_batch_norm",
    "check_logits",
    "check_types",
    "compared",
    "detached_copy",
    "file_sha256",
    "gated_layers",
    "has_batch_norm",
    "head_of",
    "initial_weight",
    "initialise",
    "inputs_first",
    "is_ours",
    "is_own",
    "left_whole",
    "logits_of",
    "make_dynamic",
    "network_names",
    "never_trained",
    "not_accepted",
    "noting_saliency",
    "opened",
    "outputs_hint",
    "outputs_in",
    "own_copy",
    "prunable",
    "put_state",
    "read_state",
    "recompute_statistics",
    "replace_head",
    "set_winners",
    "unwrapped",
    "without_fused_attention",
]
