"""The supernet: an ordinary dense network, with the topology that an extractor is giving it.

Weights learned: dead weights are exact zeros in the dense tensor, their gradients are masked just before the
optimizer's step and their optimizer state is zero, so the forward pass costs nothing extra.
Relevance learned: weights are frozen, and the forward pass runs on effective weights s * w * z.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from subnet_search.extractors import Clock, Extractor, RelevanceLearner
from subnet_search.extractors.base import Change
from subnet_search.nets import prunable
from subnet_search.seeds import generator
from subnet_search.topology import rescale
from subnet_search.topology.masks import Masks
from subnet_search.training.recipe import Recipe

FACTORS: Mapping[str, Callable[[Tensor], Tensor]] = {"dynamic": rescale.dynamic, "fan_in": rescale.fan_in}


class Supernet:
    """A network, its topology, and what is learned: `weights`, `relevance` and `scales`, all by parameter name."""

    def __init__(self, net: nn.Module, extractor: Extractor, recipe: Recipe, seed: int) -> None:
        layout = torch.channels_last if recipe.channels_last else torch.preserve_format
        self.net = net.to(device=recipe.device, memory_format=layout)  # type: ignore[call-overload]
        self.extractor, self.recipe = extractor, recipe
        self._weights = prunable(net)
        self.relevance: dict[str, Tensor] = {}
        self.scales: dict[str, Tensor] = {}
        self._masks = Masks.ones(self.weights)
        if isinstance(extractor, RelevanceLearner):
            for parameter in net.parameters():
                parameter.requires_grad_(False)
            for name, weight in self.weights.items():
                rng = generator(seed, "relevance", name, device=weight.device)
                self.relevance[name] = extractor.initial(weight, rng).requires_grad_()
                if extractor.rescale == "learned":
                    self.scales[name] = torch.ones((), device=weight.device, requires_grad=True)
        self._call: Callable[..., Tensor] = self._plain_call
        if recipe.compile:
            self._call = torch.compile(self._plain_call)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The prunable weights, without their gradients."""
        return {name: weight.detach() for name, weight in self._weights.items()}

    @property
    def masks(self) -> Masks:
        """The topology in force: where relevance is learned, the one it stands for now."""
        return self.extractor.finish(self) if self.relevance else self._masks

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.net.parameters()).device
        return device

    def begin(self, clock: Clock) -> None:
        """Ask the extractor for its first topology and take it on."""
        if not self.relevance:
            self._set(self.extractor.begin(self, clock))

    def forward(self, inputs: Tensor, clock: Clock) -> Tensor:
        """Logits (batch, classes) for a training step: with a sampled topology where relevance is learned."""
        if not isinstance(self.extractor, RelevanceLearner):
            return self._run({}, inputs)
        topology = self.extractor.sample(self.relevance, clock)
        return self._run({name: self._effective(name, z) for name, z in topology.items()}, inputs)

    def evaluator(self) -> Callable[[Tensor], Tensor]:
        """A function from inputs to logits with the `finish` topology, computed once. Call it without gradients."""
        effective = self.effective_weights(self.masks) if self.relevance else {}
        return lambda inputs: self._run(effective, inputs)

    @torch.no_grad()
    def effective_weights(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights that the network computes with under `masks`: s * w * z."""
        return {name: self._effective(name, mask.to(self.weights[name].dtype)) for name, mask in masks.items()}

    @torch.no_grad()
    def factors(self, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The rescaling of every layer under `masks`: a scalar or (out, 1, ...); empty without rescaling."""
        found = {name: self._factor(name, mask.float()) for name, mask in masks.items()}
        return {name: factor.detach() for name, factor in found.items() if factor is not None}

    def apply(self, change: Change, optimizer: torch.optim.Optimizer) -> None:
        """Take on a new topology. Dropped weights and their state become zero; grown ones begin at zero, afresh."""
        self._set(change.masks)
        for name, weight in self._weights.items():
            for value in optimizer.state.get(weight, {}).values():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    value.mul_(self._masks[name])

    def mask_gradients(self) -> None:
        """Zero the gradients of dead weights: the last thing before the optimizer's step."""
        if not self.relevance:
            for name, weight in self._weights.items():
                if weight.grad is not None:
                    weight.grad.mul_(self._masks[name])

    def learned(self) -> dict[str, Tensor]:
        """Everything the optimizer moves, by a name that is unique over weights, relevance and scales."""
        if self.relevance:
            return {f"relevance.{n}": p for n, p in self.relevance.items()} | {f"scale.{n}": p for n, p in self.scales.items()}
        return {f"net.{name}": p for name, p in self.net.named_parameters() if p.requires_grad}

    def state(self) -> dict[str, Tensor]:
        """Every tensor that a resumed run needs, by name; `load_state` puts them back."""
        state = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        state |= {name: value.detach() for name, value in self.learned().items() if name not in state}
        return state | {f"mask.{name}": mask for name, mask in self._masks.items()}

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what `state` returned. Raises KeyError or RuntimeError when it is another network's."""
        for name, value in self.state().items():
            if name.startswith("mask."):
                continue
            value.copy_(state[name])
        self._masks = Masks({name: state[f"mask.{name}"].to(self.device) for name in self._masks})

    def _plain_call(self, effective: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return functional_call(self.net, effective, (inputs,))  # type: ignore[no-any-return]

    def _run(self, effective: dict[str, Tensor], inputs: Tensor) -> Tensor:
        if self.recipe.channels_last and inputs.dim() == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16"):
            return self._call(effective, inputs).float()

    def _effective(self, name: str, topology: Tensor) -> Tensor:
        return rescale.masked_weight(self.weights[name], topology, self._factor(name, topology))

    def _factor(self, name: str, topology: Tensor) -> Tensor | None:
        if name in self.scales:
            return self.scales[name]
        if isinstance(self.extractor, RelevanceLearner) and self.extractor.rescale in FACTORS:
            return FACTORS[self.extractor.rescale](topology)
        return None

    @torch.no_grad()
    def _set(self, masks: Masks) -> None:
        self._masks = masks.to(self.device)
        for name, weight in self._weights.items():
            weight.mul_(self._masks[name])
