"""Gradients before the first training step, with their cost counted in steps."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import functional_call

from subnet_search.core.errors import UserError
from subnet_search.core.nested import map_tensors, moved, tensors_in
from subnet_search.core.rng import seed_default_generators
from subnet_search.data import Batches, Data
from subnet_search.nets import call, logits_of, unwrapped
from subnet_search.tasks import Recorded, guarded_loss, inputs_sent, with_outputs
from subnet_search.training.distributed import average, rank_and_world
from subnet_search.training.supernet import Passes, Supernet

Tensors = Mapping[str, Tensor]


class Probe:
    """Gradients of the loss on training batches for given prunable weights. Implements `extractors.base.Probe`."""

    def __init__(self, supernet: Supernet, data: Data) -> None:
        self.supernet, self.data = supernet, data
        self._images = 0  # images passed backward, which are at least as many as those passed forward

    @property
    def steps(self) -> int:
        """The cost in training steps: images passed backward, divided by the batch size, rounded up."""
        return math.ceil(self._images / min(self.supernet.recipe.batch_size, len(self.data.train)))

    def gradients(self, weights: Tensors, index: int = 0, images: int | None = None) -> dict[str, Tensor]:
        """The gradient of the loss for every weight, of the weights' shapes."""
        with self._network():
            values = _leaves(weights)
            found = _gradients(self._loss(values, index, images), values)
        return self._counted(found, images, backward=1)

    def hessian_gradients(
        self, weights: Tensors, temperature: float = 1.0, index: int = 0, images: int | None = None
    ) -> dict[str, Tensor]:
        """The product H g of the loss's Hessian with its gradient g: the gradient of <stop(g), g>."""
        with self._network():
            values = _leaves(weights)
            loss = self._loss(values, index, images, temperature)
            first = _gradients(loss, values, keep_graph=True)
            fixed = {name: gradient.detach().clone() for name, gradient in first.items()}
            average(fixed.values())
            inner = torch.stack([(fixed[name] * gradient).sum() for name, gradient in first.items()]).sum()
            found = _gradients(inner, values)
        return self._counted(found, images, backward=2)

    def flow_gradients(self, weights: Tensors) -> dict[str, Tensor]:
        """The gradient of sum f(1; |theta|) with respect to |w| (SynFlow), in float64: float32 overflows in deep networks."""
        net = self.supernet.net
        inputs = inputs_sent(net, self.supernet.task, moved(self.data.first(), self.supernet.device))
        if not all(tensor.is_floating_point() for _, tensor in tensors_in(inputs)):
            raise UserError(f"{self.supernet.extractor.name} passes ones through the network, so it needs float inputs")
        with self._network():
            net.eval()
            tensors = dict((*net.named_parameters(), *net.named_buffers()))
            rest = {name: value.abs().double() for name, value in tensors.items() if value.is_floating_point()}
            values = _leaves({name: weight.abs().double() for name, weight in weights.items()})
            ones = map_tensors(lambda tensor: torch.ones_like(tensor[:1], dtype=torch.float64), inputs)
            output = call(lambda *args, **kwargs: functional_call(net, {**rest, **values}, args, kwargs), ones)
            flows = [tensor for _, tensor in tensors_in(unwrapped(logits_of(output))) if tensor.is_floating_point()]
            found = _gradients(torch.stack([flow.sum() for flow in flows]).sum(), values)
        return self._counted(found, 1, backward=1)

    def _loss(self, values: Tensors, index: int, images: int | None, temperature: float = 1.0) -> Tensor:
        """The task's loss on a batch, with the network's outputs divided by `temperature`."""
        data, supernet, (rank, world) = self.data, self.supernet, rank_and_world()
        if images is not None and images > len(data.train):
            raise UserError(f"a probe batch of {images} images is larger than the training data, {len(data.train)}")
        size = images or supernet.recipe.batch_size
        batches = Batches(data.train, data.mean, data.std, size, supernet.seed, supernet.recipe.augment, rank, world)
        batch = moved(batches.batch(index), supernet.device)
        seed_default_generators(supernet.device, supernet.seed, "dropout", "probe", index, rank)
        network = lambda *args, **kwargs: functional_call(supernet.net, dict(values), args, kwargs)  # noqa: E731
        if temperature != 1:
            network = with_outputs(network, lambda output: map_tensors(lambda tensor: tensor / temperature, logits_of(output)))
        name = type(supernet.net).__name__
        outputs = supernet.task.outputs(data)
        return guarded_loss(supernet.task, Recorded(network), batch, name, outputs, " in training mode too")

    def _counted(self, found: dict[str, Tensor], images: int | None, backward: int) -> dict[str, Tensor]:
        average(found.values())
        self.supernet.passes += Passes(1, backward)
        self._images += backward * (images or min(self.supernet.recipe.batch_size, len(self.data.train)))
        return found

    @contextmanager
    def _network(self) -> Iterator[None]:
        """Training mode with gradients enabled; buffers are restored afterwards."""
        net = self.supernet.net
        before = {name: buffer.clone() for name, buffer in net.named_buffers()}
        net.train()
        with torch.enable_grad():
            yield
        with torch.no_grad():
            for name, buffer in net.named_buffers():
                buffer.copy_(before[name])


def _leaves(weights: Tensors) -> dict[str, Tensor]:
    return {name: weight.detach().clone().requires_grad_() for name, weight in weights.items()}


def _gradients(value: Tensor, weights: dict[str, Tensor], keep_graph: bool = False) -> dict[str, Tensor]:
    """d value / d weights; zeros for weights that the forward pass does not use."""
    inputs = list(weights.values())
    found = torch.autograd.grad(value, inputs, create_graph=keep_graph, allow_unused=True, materialize_grads=True)
    return dict(zip(weights, found, strict=True))
