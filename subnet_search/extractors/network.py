"""What an extractor may ask of the network it works on, and of the data before the first step."""

from collections.abc import Mapping
from typing import Protocol, TypeAlias

from torch import Tensor

from subnet_search.topology.masks import Masks
from subnet_search.topology.units import Units

Tensors: TypeAlias = Mapping[str, Tensor]


class Network(Protocol):
    """What an extractor may ask of the network it works on. `training.supernet.Supernet` answers."""

    @property
    def weights(self) -> Tensors:
        """Prunable weights by name. While only weights are learned, dead ones are exactly zero."""

    @property
    def relevance(self) -> Tensors:
        """Learned relevance of the units; empty unless relevance is learned."""

    @property
    def units(self) -> Units:
        """What lives and dies as one: pools scores of weights to units, and chooses among units."""

    @property
    def masks(self) -> Masks:
        """The topology of units in force, as the last change set it; everything lives before the first."""

    @property
    def gradients(self) -> Tensors:
        """In `step` and `adjust`: the gradient of the last batch's loss for every weight, dead ones included."""

    @property
    def momentum(self) -> Tensors:
        """The running mean of past gradients, dead weights included; kept only for extractors with `needs_momentum`."""

    @property
    def memory(self) -> Tensors:
        """What changes have kept for later, by the names they gave it; empty at first."""

    @property
    def norms(self) -> Tensors:
        """The scales of batch norms behind each group of channels, (norms, channels); groups without one are left out."""

    @property
    def features(self) -> Tensors:
        """In a step that the extractor `looks_at`: what is read of each group of channels, (images, channels, numbers)."""

    @property
    def saliency(self) -> Tensors:
        """In `penalty`: how salient each layer's filters are to the inputs of this step, (inputs, filters), where dynamic."""


class Probe(Protocol):
    """Training data to score weights by before the first step. Every pass is counted and paid for in training steps.

    `weights` are values to compute with in place of the network's, such as masked ones; batch number `index` holds
    `images` training images (None: the recipe's batch). Raises UserError when that is more than there are.
    """

    def gradients(self, weights: Tensors, index: int = 0, images: int | None = None) -> dict[str, Tensor]:
        """The gradient of the loss."""

    def hessian_gradients(
        self, weights: Tensors, temperature: float = 1.0, index: int = 0, images: int | None = None
    ) -> dict[str, Tensor]:
        """The product of the loss's Hessian with its gradient, of logits divided by `temperature`."""

    def flow_gradients(self, weights: Tensors) -> dict[str, Tensor]:
        """The gradient, for |weights|, of the sum of outputs on one input of ones, every parameter made positive. No data."""
