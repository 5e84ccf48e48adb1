"""The supernet: a dense network with the topology that its extractor maintains.

While weights are learned, dead weights and their optimizer state are zero in the dense tensors, so the forward pass is the
network's own. While relevance is learned, alone or with the weights, the forward pass uses effective weights s * w * gate.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.func import functional_call

from subnet_search.core.errors import UserError
from subnet_search.core.nested import map_tensors
from subnet_search.core.rng import generator
from subnet_search.extractors import Clock, Extractor, RelevanceLearner
from subnet_search.extractors.base import Change, Learned, trains_weights
from subnet_search.nets import call, inputs_first, left_whole, noting_saliency, opened, own_copy, prunable, set_winners
from subnet_search.structure.units_of_network import norms, watched
from subnet_search.tasks import Classification, Network, Task
from subnet_search.topology import rescale
from subnet_search.topology.masks import Masks, pack, unpack
from subnet_search.topology.units import Units
from subnet_search.training.recipe import Recipe
from subnet_search.training.weight_statistics import add_sample

FACTORS: Mapping[str, Callable[[Tensor], Tensor]] = {"dynamic": rescale.dynamic, "fan_in": rescale.fan_in}
MOMENTUM = 0.9  # of the running mean of gradients, which some extractors grow weights by


class Passes(NamedTuple):
    """Numbers of forward and backward passes of a batch, in training and probes; validation is not counted."""

    forward: int = 0
    backward: int = 0

    def __add__(self, other: tuple[int, int]) -> "Passes":  # type: ignore[override]
        return Passes(self.forward + other[0], self.backward + other[1])


class Supernet:
    """A network, its topology, and the learned tensors `weights`, `relevance` and `scales`, all by parameter name.

    units: the groups of weights that are kept or pruned together; default: single weights. task: default classification.
    teacher: for `recipe.distill`; default: a copy of the network as it is now.

    Raises UserError when the extractor trains weights and all of them are frozen, or when the recipe does not fit.
    """

    def __init__(
        self,
        net: nn.Module,
        extractor: Extractor,
        recipe: Recipe,
        seed: int,
        units: Units | None = None,
        task: Task | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        layout = torch.channels_last if recipe.channels_last else torch.preserve_format
        self.net = net.to(device=recipe.device, memory_format=layout)  # type: ignore[call-overload]
        self.extractor, self.recipe, self.seed, self.task = extractor, recipe, seed, task or Classification()
        self.teacher: nn.Module | None = None
        if recipe.distill:
            own = own_copy(teacher or opened(net)).eval().requires_grad_(False)
            self.teacher = own.to(device=recipe.device, memory_format=layout)  # type: ignore[call-overload]
        parameters = dict(net.named_parameters())
        self.weights: dict[str, Tensor] = {name: parameters[name] for name in (units.weights if units else prunable(net))}
        self._inputs_first = inputs_first(net)
        self.left_whole = left_whole(net, self.weights)  # by name why, before `learn` freezes weights
        if trains_weights(type(extractor)) and not any(weight.requires_grad for weight in self.weights.values()):
            raise UserError(
                f"{extractor.name} trains weights, but all prunable weights are frozen (requires_grad=False): unfreeze some, "
                "or use a method that learns only relevance, such as gumbel or edge_popup"
            )
        self.units = units or Units({name: weight.shape for name, weight in self.weights.items()})
        everything = {name: torch.ones(shape, dtype=torch.bool) for name, shape in self.units.shapes.items()}
        self.masks = Masks(everything).to(self.device)  # the current topology of units, set by the last change
        self.gates = self.units.gates(self.masks)  # weight masks during the search; pruned units may regrow
        self.relevance: dict[str, Tensor] = {}
        self.scales: dict[str, Tensor] = {}
        self.momentum: dict[str, Tensor] = {}
        self.memory: dict[str, Tensor] = {}  # tensors that changes have stored for later steps
        self.features: dict[str, Tensor] = {}  # activations of the step, if the extractor needs them
        self.saliency: dict[str, Tensor] = {}  # of the step's inputs for the filters of dynamic layers
        self.ever_alive: dict[str, Tensor] = {}  # packed bits of the units that were ever alive, with `recipe.explored`
        self.last_epoch: dict[str, Tensor] = {}  # packed bits of the topology at the end of the last epoch
        self.weight_sums: dict[str, Tensor] = {}  # of samples since the last change, with `recipe.weight_statistics`
        self.passes = Passes()
        self.rewind_state: dict[str, Tensor] = {}  # the network's state at the step to rewind to
        self._trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
        self.learns: Learned = "weights"
        self.learn(extractor.learns)
        if extractor.needs_momentum:
            self.momentum = {name: torch.zeros_like(weight, requires_grad=False) for name, weight in self.weights.items()}
        self._call: Callable[..., Any] = self._plain_call
        if recipe.compile:
            self._call = torch.compile(self._plain_call)

    @property
    def gradients(self) -> dict[str, Tensor]:
        """The gradient of every prunable weight; zeros for weights without a gradient."""
        return {n: torch.zeros_like(w) if w.grad is None else w.grad for n, w in self.weights.items()}

    @property
    def norms(self) -> dict[str, Tensor]:
        """The scales (gamma) of the batch norms of each group of channels: (norms, channels)."""
        return norms(self.net, self.units)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        device: torch.device = next(self.net.parameters()).device
        return device

    def check(self, start: Clock) -> None:
        """Raise UserError when the method cannot do what is asked for on this network in `start.total` steps."""
        self.extractor.check(self.units, start)
        if (density := self.extractor.target_density) is not None:
            self.units.check(density)
        self.extractor.check_network(self)

    def final(self) -> Masks:
        """The topology of units to keep and to evaluate: of the current relevance, if relevance is learned."""
        with torch.no_grad():
            return self.extractor.finish(self) if self.relevance else self.masks

    def weight_masks(self, units: Masks) -> Masks:
        """The weight masks of a topology of units."""
        return Masks(self.units.expand(units))

    def sampled(self, clock: Clock) -> Network:
        """The network of a training step, with sampled gates if relevance is learned."""
        effective = self._effective(self._learner().sample(self, clock)) if self.relevance else {}
        self.features, self.saliency = {}, {}

        def forward(*args: Any, **kwargs: Any) -> Any:
            self.passes += Passes(forward=1)
            with noting_saliency(self.net, self.saliency):
                if self.extractor.looks_at(clock):
                    with watched(self.net, self.units, self.features):
                        return self._forward(effective, args, kwargs, self._plain_call)  # a compiled one would skip the hooks
                return self._forward(effective, args, kwargs)

        return forward

    def forward(self, inputs: Any, clock: Clock) -> Any:
        """The output of `sampled` for inputs of the network."""
        return call(self.sampled(clock), inputs)

    def evaluator(self) -> Network:
        """The network with the `final` topology, computed once. Call it without gradients."""
        effective = self.effective_weights(self.final()) if self.relevance else {}
        return lambda *args, **kwargs: self._forward(effective, args, kwargs)

    @torch.no_grad()
    def dense(self, *args: Any, **kwargs: Any) -> Any:
        """The output with all weights, without gradients; running statistics are not changed."""
        self.passes += Passes(forward=1)
        buffers = {name: buffer.clone() for name, buffer in self.net.named_buffers()}
        return self._forward(buffers, args, kwargs)

    @torch.no_grad()
    def taught(self, *args: Any, **kwargs: Any) -> Any:
        """The output of the teacher, without gradients."""
        self.passes += Passes(forward=1)
        teacher = self.teacher
        assert teacher is not None, "recipe.distill is not set"
        return self._forward({}, args, kwargs, lambda _, args, kwargs: teacher(*args, **kwargs))

    @torch.no_grad()
    def effective_weights(self, masks: Masks) -> dict[str, Tensor]:
        """The effective weights s * w * gate under `masks` of units."""
        return self._effective(self._learner().gates(self, masks))

    @torch.no_grad()
    def factors(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The rescaling factors under `masks` of units: scalars, (out, 1, ...) or (1, out); empty without rescaling."""
        found = {name: self._factor(name, mask.float()) for name, mask in self.units.gates(masks).items()}
        return {name: factor.detach() for name, factor in found.items() if factor is not None}

    @torch.no_grad()
    def fold_gates(self, masks: Masks) -> None:
        """Multiply gates other than 0 and 1 into the weights, so that the network is given by masks, weights and factors."""
        if self.relevance:
            gates = self._learner().gates(self, masks)
            if any(not torch.equal(gate, masks[name].to(gate.dtype)) for name, gate in gates.items()):
                for name, gate in self.units.gates(gates).items():
                    self.weights[name].mul_(gate)

    @torch.no_grad()
    def learn(self, what: Learned, masks: Masks | None = None) -> None:
        """Learn weights, relevance or both from now on.

        When relevance is no longer learned, effective weights under `masks` (default: the final topology) replace the weights.
        """
        self.learns = what
        for parameter in self._trainable:
            parameter.requires_grad_(what != "relevance")
            parameter.grad = None
        if what == "weights" and self.relevance:
            masks = masks or self.final()
            effective = self.effective_weights(masks)
            self.relevance, self.scales = {}, {}
            for name, weight in self.weights.items():
                weight.copy_(effective[name])
            self._set(masks)
        elif what != "weights" and not self.relevance:
            learner = self._learner()
            for name, unit in self.units.pool_magnitude(self.weights).items():
                rng = generator(self.seed, "relevance", name, device=unit.device)
                initial = self._outputs_first(name, learner.initial(self._outputs_first(name, unit.detach()), rng))
                self.relevance[name] = initial.requires_grad_()
            if learner.rescale == "learned":
                self.scales = {name: torch.ones((), device=w.device, requires_grad=True) for name, w in self.weights.items()}

    @torch.no_grad()
    def apply(self, change: Change) -> None:
        """Apply a change, except its effects on the optimizer. Dropped weights become zero; grown weights start at zero."""
        if change.masks is not None or change.weights or change.learn or change.rewind != "none":
            self.weight_sums = {}
        if change.rewind in ("weights", "both"):
            for name, value in self.net.state_dict().items():
                value.copy_(self.rewind_state[name])
        for name, value in (change.weights or {}).items():
            self.weights[name].copy_(value)
        for name, value in (change.relevance or {}).items():
            self.relevance[name].copy_(value)
        self.memory |= {name: value.detach().clone() for name, value in (change.memory or {}).items()}
        if change.winners is not None:
            set_winners(self.net, change.winners)
        if change.masks is not None or change.rewind in ("weights", "both"):
            self._set(self.masks if change.masks is None else change.masks)
        elif not self.ever_alive:
            self._record_alive()
        if change.learn and change.learn != self.learns:
            self.learn(change.learn, change.masks)

    def exploration_rate(self) -> float | None:
        """The in-time exploration rate: the fraction of units that were ever alive; None if it is not recorded.

        Source: Liu et al. 2021, arXiv:2102.02887 (in-time over-parameterisation, ITOP).
        """
        if not self.ever_alive:
            return None
        return sum(int(unpack(b, self.masks[n].shape).sum()) for n, b in self.ever_alive.items()) / self.masks.numel

    def keep_rewind_state(self) -> None:
        """Copy the network's state, for a later rewind."""
        self.rewind_state = {name: value.clone() for name, value in self.net.state_dict().items()}

    @torch.no_grad()
    def update_momentum(self) -> None:
        """Update the running mean of gradients, if the extractor needs one."""
        gradients = self.gradients if self.momentum else {}
        for name, mean in self.momentum.items():
            mean.lerp_(gradients[name], 1 - MOMENTUM)

    def add_weight_sample(self) -> None:
        """Add the parameters to the weight statistics, unless relevance is learned."""
        if not self.relevance:
            named = self.net.named_parameters(remove_duplicate=False)
            add_sample(self.weight_sums, {name: parameter.detach() for name, parameter in named if parameter.requires_grad})

    @torch.no_grad()
    def mask_weights(self, optimizer: torch.optim.Optimizer) -> None:
        """Zero dead weights and their optimizer state, after a step with dense gradients or a change."""
        if not self.relevance:
            for name, weight in self.weights.items():
                state = [value for value in optimizer.state.get(weight, {}).values() if isinstance(value, Tensor)]
                for tensor in (weight, *(value for value in state if value.shape == weight.shape)):
                    tensor.mul_(self.gates[name])

    def mask_gradients(self) -> None:
        """Zero the gradients of dead weights, right before the optimizer's step."""
        if not self.relevance:
            for name, weight in self.weights.items():
                if weight.grad is not None:
                    weight.grad.mul_(self.gates[name])

    def learned(self) -> dict[str, Tensor]:
        """All tensors that the optimizer updates; names begin with net., relevance. or scale."""
        named = {f"net.{name}": p for name, p in self.net.named_parameters() if p.requires_grad}
        return (
            named | {f"relevance.{n}": p for n, p in self.relevance.items()} | {f"scale.{n}": p for n, p in self.scales.items()}
        )

    def state(self) -> dict[str, Tensor]:
        """All tensors needed to resume, by name; for `load_state`."""
        state = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        state["learns"] = torch.tensor(get_args(Learned).index(self.learns))
        state |= {name: value.detach() for name, value in self.learned().items() if name not in state}
        kept = {
            "mask": self.masks,
            "momentum": self.momentum,
            "rewind_state": self.rewind_state,
            "ever": self.ever_alive,
            "last_epoch": self.last_epoch,
            "memory": self.memory,
            "weight_sums": self.weight_sums,
        }
        return state | {f"{kind}.{name}": value for kind, tensors in kept.items() for name, value in tensors.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore tensors that `state` returned. Raises KeyError or RuntimeError when they are of another network."""
        self.learn(get_args(Learned)[int(state["learns"])])
        restored = ("rewind_state.", "ever.", "last_epoch.", "memory.", "weight_sums.")
        rewind = _with_prefix("rewind_state.", state) or _with_prefix("anchor.", state)  # the name before 0.1.0
        self.rewind_state = {name: tensor.to(self.device) for name, tensor in rewind.items()}
        self.ever_alive = _with_prefix("ever.", state)
        self.last_epoch = _with_prefix("last_epoch.", state)
        self.memory = {name: tensor.to(self.device) for name, tensor in _with_prefix("memory.", state).items()}
        self.weight_sums = {name: tensor.to(self.device) for name, tensor in _with_prefix("weight_sums.", state).items()}
        for name, value in self.state().items():
            if name != "learns" and not name.startswith(("mask.", *restored)):
                value.copy_(state[name])
        self.masks = Masks({name: state[f"mask.{name}"].to(self.device) for name in self.masks})
        self.gates = self.units.gates(self.masks)

    def _plain_call(self, effective: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return functional_call(self.net, effective, args, kwargs)

    def _forward(
        self,
        effective: dict[str, Tensor],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        forward: Callable[..., Any] | None = None,
    ) -> Any:
        if self.recipe.channels_last:
            args, kwargs = map_tensors(_channels_last, args), map_tensors(_channels_last, kwargs)
        half = self.recipe.precision == "bf16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            output = (forward or self._call)(effective, args, kwargs)
        return map_tensors(_single, output) if half else output

    def _learner(self) -> RelevanceLearner:
        assert isinstance(self.extractor, RelevanceLearner), f"{self.extractor.name} has no relevance to learn"
        return self.extractor

    def _effective(self, gates: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {}
        for name, gate in self.units.gates(gates).items():
            weight, factor = self.weights[name], self._factor(name, gate)
            if weight.requires_grad and torch.is_grad_enabled():
                found[name] = weight * gate if factor is None else weight * gate * factor
            else:
                found[name] = rescale.masked_weight(weight.detach(), gate, factor)
        return found

    def _factor(self, name: str, gate: Tensor) -> Tensor | None:
        if name in self.scales:
            return self.scales[name]
        if isinstance(self.extractor, RelevanceLearner) and self.relevance and self.extractor.rescale in FACTORS:
            constant = self.extractor.keeps_count and self.extractor.rescale == "dynamic"
            gate = self._outputs_first(name, gate.detach() if constant else gate)
            return self._outputs_first(name, FACTORS[self.extractor.rescale](gate))
        return None

    def _outputs_first(self, name: str, tensor: Tensor) -> Tensor:
        """A weight that is stored as (inputs, outputs), transposed; all others unchanged."""
        return tensor.T.contiguous() if tensor.dim() == 2 and name in self._inputs_first else tensor

    @torch.no_grad()
    def _set(self, masks: Masks) -> None:
        self.masks = masks.to(self.device)
        self.gates = self.units.gates(self.masks)
        if not self.relevance:
            for name, weight in self.weights.items():
                weight.mul_(self.gates[name])
        self._record_alive()

    def _record_alive(self) -> None:
        """Add the units that are alive to those that were ever alive, with `recipe.explored`."""
        if self.recipe.explored and not self.relevance:
            bits = {name: pack(mask) for name, mask in self.masks.items()}
            self.ever_alive = {name: bit | self.ever_alive.get(name, bit) for name, bit in bits.items()}


def _channels_last(tensor: Tensor) -> Tensor:
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor


def _single(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


def _with_prefix(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
