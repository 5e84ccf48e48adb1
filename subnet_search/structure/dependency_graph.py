"""torch-pruning's dependency graph, with corrections for sizes, flattening, broadcasting and recurrent layers."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from subnet_search.core.nested import tensors_in
from subnet_search.nets import call, outputs_in

STEPS = 5_000  # of torch-pruning in a group; the largest of densenet121 takes 502


def graph(net: nn.Module, example: Any) -> Any:
    """A torch_pruning.DependencyGraph of a network in evaluation mode. Raises what the forward pass raises."""
    from torch_pruning import DependencyGraph
    from torch_pruning.dependency.index_mapping import _FlattenIndexMapping
    from torch_pruning.dependency.shape_infer import infer_out_channels_recursively
    from torch_pruning.ops import OPTYPE

    class Graph(DependencyGraph):  # type: ignore[misc]
        def _trace(self, *arguments: Any, **options: Any) -> Any:
            """Set the sizes that torch-pruning looks up under attribute names of older torch versions."""
            nodes = super()._trace(*arguments, **options)
            for node in nodes.values():
                given = getattr(node.grad_fn, "_input_metadata", ())
                node.shape = tuple(given[0].shape) if given else ()
                if isinstance(node.module, self.ops._ReshapeOp | self.ops._SplitOp):
                    saved = {name: getattr(node.grad_fn, name) for name in dir(node.grad_fn) if name.startswith("_saved_")}
                    node.grad_fn = SimpleNamespace(**{name.replace("_sym_", "_"): value for name, value in saved.items()})
                    node.flattened = _flattened(getattr(node.grad_fn, "_saved_self_sizes", ()), node.shape)
            return nodes

        def _build_dependency(self, nodes: Any) -> None:
            """Correct flattening (torch-pruning: only of images, before a linear layer) and broadcasting (not modelled)."""
            super()._build_dependency(nodes)
            for dep in (dep for node in nodes.values() for dep in node.dependencies):
                dep.index_mapping.append(self._count)
            for node in nodes.values():
                if sizes := getattr(node, "flattened", None):
                    node.type = OPTYPE.ELEMENTWISE  # without an index mapping by torch-pruning
                    for source, dep in [(source, dep) for one in node.inputs for source, dep in _between(one, node)]:
                        dep.index_mapping[0] = _FlattenIndexMapping(sizes[1] // sizes[0], reverse=source is node)
                for one in node.inputs:
                    spread = len(one.shape) == len(node.shape) and math.prod(one.shape) < math.prod(node.shape)
                    if spread and node.type == OPTYPE.ELEMENTWISE and infer_out_channels_recursively(self, one, [0]) == 1:
                        for source, dep in _between(one, node):  # one channel broadcast to many
                            source.dependencies.remove(dep)

        def get_pruning_group(self, *arguments: Any) -> Any:
            self.steps = 0
            return super().get_pruning_group(*arguments)

        def _count(self, indices: Any) -> Any:
            """Passes indices on. Some operations, as rotary embeddings, are followed in circles with ever new indices."""
            self.steps += 1
            if self.steps > STEPS:
                raise RuntimeError("its channels depend on each other in circles")
            return indices

        def get_in_channels(self, at: Any) -> Any:
            return at.flattened[0] if getattr(at, "flattened", None) else super().get_in_channels(at)

        def get_out_channels(self, at: Any) -> Any:
            return at.flattened[1] if getattr(at, "flattened", None) else super().get_out_channels(at)

    found = Graph()
    recurrent = dict.fromkeys((nn.RNN, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell), found.REGISTERED_PRUNERS[OPTYPE.LSTM])
    with _recurrent_layers_as_one(net):
        return found.build_dependency(net, example, call, _differentiable, customized_pruners=recurrent)


def _differentiable(output: Any) -> list[Tensor]:
    """The tensors in an output that torch-pruning follows back to the inputs."""
    tensors = [tensor for _, tensor in tensors_in(output)] or list(outputs_in(output).values())
    return [tensor for tensor in tensors if tensor.grad_fn is not None]


def _between(one: Any, node: Any) -> list[tuple[Any, Any]]:
    """The dependencies between two nodes, each with its source node."""
    pairs = ((one, node), (node, one))
    return [(source, dep) for source, target in pairs for dep in source.dependencies if dep.target is target]


def _flattened(before: tuple[int, ...], after: tuple[int, ...]) -> tuple[int, int] | None:
    """Channels before and after flattening (batch, channels, ...) to (batch, all); None for any other reshape."""
    if len(after) == 2 < len(before) and before[1] < after[1] == math.prod(before[1:]):
        return before[1], after[1]
    return None


class _One(torch.autograd.Function):
    """A layer's forward pass as one node of the autograd graph."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, *made: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.clone() for tensor in made)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> None:
        raise NotImplementedError("only for tracing")


@contextmanager
def _recurrent_layers_as_one(net: nn.Module) -> Iterator[None]:
    """Trace every recurrent layer of a network (RNN, LSTM, GRU, and their cells) as one operation."""
    layers = [module for module in net.modules() if isinstance(module, nn.RNNBase | nn.RNNCellBase)]
    for layer in layers:
        layer.forward = _as_one(layer)
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _as_one(layer: nn.Module) -> Callable[..., Any]:
    def forward(inputs: Any, *others: Any, **named: Any) -> Any:
        with torch.no_grad():
            made = type(layer).forward(layer, inputs, *others, **named)
        if not isinstance(inputs, Tensor):  # packed sequences
            return made
        tensors, shape = tree_flatten(made)
        return tree_unflatten(_One.apply(inputs, *tensors), shape)

    return forward
