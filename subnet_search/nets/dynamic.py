"""Networks in which each input chooses the filters that it computes: a gate before every convolution.

Gao, Zhao, Dudziak, Mullins & Xu 2019, "Dynamic Channel Pruning: Feature Boosting and Suppression", arXiv:1810.05331,
section 3. From the mean |x| of each channel of its inputs, ss(x), a layer predicts how salient each of its filters
is, g(x) = relu(phi ss(x) + rho); the winners, the k of largest saliency, are computed and multiplied by it, all others are
zero: wta_k(g(x)) * norm(conv(x)).

Where we differ: the batch norm's own scale stays beside the saliency, which the authors put in its place. ss(x) is divided
by its mean over channels: as it is, an image's contrast enters at every layer once more, and grows by a power (an untrained
ResNet-20 overflows in its second step). And phi begins at a tenth of He's size: at the whole size the same network, at rate
0.1, still came to nan within 40 steps.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from subnet_search.core.errors import UserError
from subnet_search.core.rng import generator
from subnet_search.nets.outputs import compared

SMALL = 0.1  # phi at first, of He's size


class Gate(nn.Module):
    """How salient the filters of a layer are to each input, and how many of them win."""

    def __init__(self, inputs: int, filters: int, rng: torch.Generator) -> None:
        super().__init__()
        self.phi = nn.Parameter(torch.randn(filters, inputs, generator=rng) * SMALL * math.sqrt(2 / inputs))
        self.rho = nn.Parameter(torch.ones(filters))
        self.winners: Tensor
        self.register_buffer("winners", torch.tensor([filters]))

    def forward(self, strength: Tensor) -> Tensor:
        """strength: the mean |x| of each channel, (inputs, channels). Returns g(x), (inputs, filters)."""
        relative = strength / strength.mean(1, keepdim=True).clamp(min=torch.finfo(strength.dtype).tiny)
        return F.linear(relative, self.phi, self.rho).relu()

    def choose(self, saliency: Tensor) -> Tensor:
        """wta_k: the saliency of the winners, and zero."""
        least = saliency.sort(1, descending=True).values.index_select(1, self.winners - 1)
        return saliency * (saliency >= least)


class Gated(nn.Module):
    """A convolution, with the batch norm behind it, of which each input computes the filters that win.

    One input by itself, in evaluation mode, is spared the other filters, and those channels of the layer's inputs that
    the layer before left zero. Several at once, which choose differently, are multiplied by their gates.
    """

    def __init__(self, layer: _ConvNd, norm: _BatchNorm | None, rng: torch.Generator) -> None:
        super().__init__()
        self.layer, self.norm = layer, norm
        self.gate = Gate(layer.in_channels, layer.out_channels, rng).to(layer.weight.device, layer.weight.dtype)

    def forward(self, inputs: Tensor) -> Tensor:
        strength = inputs.abs().flatten(2).mean(2)
        gate = self.gate.choose(self.gate(strength))
        if not self.training and not torch.compiler.is_compiling() and inputs.shape[0] == 1:
            live, won = strength[0].nonzero().view(-1), gate[0].nonzero().view(-1)
            if len(live) and len(won):
                return self._spared(inputs, live, won, gate[0, won])
        outputs = self.layer(inputs)
        if self.norm is not None:
            outputs = self.norm(outputs)
        return outputs * gate.view(*gate.shape, *[1] * (outputs.dim() - 2))  # type: ignore[no-any-return]

    def _spared(self, inputs: Tensor, live: Tensor, won: Tensor, factor: Tensor) -> Tensor:
        """live: the channels of the inputs that are not zero; won, factor: the winners, and their saliency."""
        bias = None if self.layer.bias is None else self.layer.bias[won]
        weight = self.layer.weight.index_select(0, won).index_select(1, live)
        outputs = self.layer._conv_forward(inputs.index_select(1, live), weight, bias)[0]
        shape = (-1, *[1] * (outputs.dim() - 1))
        shift = None
        if self.norm is not None:
            norm = self.norm
            scale = (norm.running_var[won] + norm.eps).rsqrt()  # type: ignore[index]
            scale = scale if norm.weight is None else scale * norm.weight[won]
            shift = -norm.running_mean[won] * scale  # type: ignore[index]
            shift = ((shift if norm.bias is None else shift + norm.bias[won]) * factor).view(shape)
            factor = factor * scale
        outputs = outputs * factor.view(shape) if shift is None else torch.addcmul(shift, outputs, factor.view(shape))
        return outputs.new_zeros(self.layer.out_channels, *outputs.shape[1:]).index_copy_(0, won, outputs)[None]


def gated_layers(net: nn.Module) -> dict[str, Gated]:
    """The layers of a network that have a gate, by name."""
    return {name: module for name, module in net.named_modules() if isinstance(module, Gated)}


def make_dynamic(net: nn.Module, shape: tuple[int, ...], seed: int = 0) -> nn.Module:
    """Give every convolution of a network a gate, in place; one that has gates stays as it is. shape: of one input.

    Grouped and transposed convolutions, and one that computes the logits, get none. All filters win at first.
    Raises UserError when inputs are not one float tensor, when there is no convolution, or the network uses what one returns
    in other ways too.
    """
    if gated_layers(net):
        return net
    if not shape:
        raise UserError("filters that each input chooses need a network whose input is one float tensor, such as images")
    convolutions = {
        name: module
        for name, module in net.named_modules()
        if isinstance(module, _ConvNd) and not isinstance(module, _ConvTransposeNd) and module.groups == 1
    }
    example = torch.randn(2, *shape, generator=generator(0, "example")).to(next(net.parameters()).device)
    with _at_rest(net):
        try:
            before, norms, last = _norms_behind(net, convolutions, example)
        except Exception as error:  # whatever a user's forward pass raises
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"this network cannot choose filters: it is tried on random numbers, and does not take them: {why}"
            ) from error
        convolutions.pop(last, None)
        if not convolutions:
            raise UserError("filters that each input chooses are those of convolutions, and this network has none")
        for name, layer in convolutions.items():
            norm = norms.get(name)
            net.set_submodule(name, Gated(layer, net.get_submodule(norm) if norm else None, generator(seed, "gate", name)))  # type: ignore[arg-type]
            if norm:
                net.set_submodule(norm, nn.Identity())
        after = opened(net)(example)
    pairs = zip(compared(before), compared(after), strict=True)
    if not all(torch.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in pairs):
        raise UserError("this network cannot choose filters: what a convolution returns is used beside the norm behind it")
    return net


def opened(net: nn.Module) -> nn.Module:
    """A copy of a network without its gates: plain layers, which compute all filters. One without gates is returned itself."""
    if not gated_layers(net):
        return net
    plain = copy.deepcopy(net)
    for name, gated in gated_layers(plain).items():
        plain.set_submodule(name, nn.Sequential(gated.layer, gated.norm) if gated.norm else gated.layer)
    return plain


@torch.no_grad()
def set_winners(net: nn.Module, share: float) -> None:
    """From now on this share of each layer's filters wins, rounded up."""
    for gated in gated_layers(net).values():
        gated.gate.winners.fill_(math.ceil(share * gated.layer.out_channels - 1e-9))


@contextmanager
def noting_saliency(net: nn.Module, found: dict[str, Tensor]) -> Iterator[None]:
    """Put into `found` how salient each layer's filters are to the inputs of a forward pass: (inputs, filters)."""
    handles = [
        gated.gate.register_forward_hook(lambda _, __, out, name=name: found.__setitem__(name, out))
        for name, gated in gated_layers(net).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _at_rest(net: nn.Module) -> Iterator[None]:
    was_training = net.training
    try:
        with torch.no_grad():
            net.eval()
            yield
    finally:
        net.train(was_training)


def _norms_behind(net: nn.Module, convolutions: dict[str, _ConvNd], example: Tensor) -> tuple[Any, dict[str, str], str]:
    """What the network says; the batch norm that is called with what a convolution returns; the last layer with a weight."""
    returned: dict[str, Tensor] = {}
    norms: dict[str, str] = {}
    last = [""]

    def note(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if name in convolutions:
            returned[name] = output
        elif isinstance(module, _BatchNorm) and module.track_running_stats:
            norms.update({before: name for before, tensor in returned.items() if tensor is inputs[0]})
        if isinstance(module, _ConvNd | nn.Linear):
            last[0] = name

    handles = [
        module.register_forward_hook(lambda m, i, o, name=name: note(name, m, i, o))
        for name, module in net.named_modules()
        if isinstance(module, _ConvNd | _BatchNorm | nn.Linear)
    ]
    try:
        return net(example), norms, last[0]
    finally:
        for handle in handles:
            handle.remove()
