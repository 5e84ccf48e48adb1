"""Shuffled: controls that test what a topology's pattern, and the weights it was found on, contribute.

Section 5. Where accuracy stays the same, the method found no more than the number of weights of each layer. New weights are
normal, with each layer's own standard deviation.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ValidationError, field_validator
from torch import Tensor

from subnet_search.extractors import author as ss


@ss.register("shuffled")
class Shuffled(ss.Extractor):
    """Permute another method's mask: a control.

    Take another method's topology, permute it within layers or draw new weights, then train: a control.
    """

    paper = ss.Paper(
        "Frankle, Dziugaite, Roy & Carbin",
        2021,
        "2009.08576",
        "Pruning Neural Networks at Initialization: Why Are We Missing the Mark?",
        "m_l <- a random permutation of m_l; w <- N(0, std(w_l)^2)",
    )
    paradigm = ss.Paradigm("another method's, permuted, before training", "trained", "fixed", True)
    published = ss.Published.none("a control, to be trained with the recipe of the method whose topology it shuffles")

    source: str | dict[str, Any] = "snip"
    """Whose topology: a method, with its hyperparameters or without, or the path of a subnetwork or masks file."""
    density: Annotated[ss.Density | None, ss.Real(0.01, 0.5, log=True)] = None
    """Fraction of prunable weights kept. None: as the source has it."""
    permute: Annotated[bool, ss.OneOf(False, True)] = True
    """Permute the topology within every layer."""
    redraw: Annotated[bool, ss.OneOf(False, True)] = False
    """Draw new weights."""

    @field_validator("source")
    @classmethod
    def _known(cls, source: Any) -> Any:
        if not _is_file(source):
            try:
                ss.create(source)
            except ValidationError as error:
                raise ss.invalid(error) from error
        return source

    def check(self, units: ss.Units, clock: ss.Clock) -> None:
        if not _is_file(self.source):
            self._source().check(units, clock)

    def check_network(self, net: ss.Network) -> None:
        if not _is_file(self.source):
            self._source().check_network(net)

    def begin(self, net: ss.Network, clock: ss.Clock, probe: ss.Probe) -> ss.Change:
        masks = self._topology(net, clock, probe)
        if self.permute:
            masks = ss.Masks({name: _permuted(mask, clock.generator("permute", name)) for name, mask in masks.items()})
        weights = net.weights.items() if self.redraw else ()
        return ss.Change(masks, weights={name: _redrawn(w, clock.generator("redraw", name)) for name, w in weights} or None)

    def _topology(self, net: ss.Network, clock: ss.Clock, probe: ss.Probe) -> ss.Masks:
        if _is_file(self.source):
            masks = _masks_in_file(Path(str(self.source)))
            if {n: m.shape for n, m in masks.items()} != {n: w.shape for n, w in net.weights.items()}:
                raise ss.UserError(f"{self.source} holds the masks of another network")
            if self.density is not None:
                raise ss.UserError(f"shuffled: the density is that of {self.source}; leave it out")
            return masks
        source = self._source()
        found = source.begin(net, clock, probe).masks
        if found is None:
            raise ss.UserError(f"shuffled: {source.name} finds its topology while it trains; give the file that it wrote")
        return found

    def _source(self) -> ss.Extractor:
        given = {"name": self.source} if isinstance(self.source, str) else dict(self.source)
        return ss.create(given if self.density is None else {**given, "density": self.density})


def _is_file(source: Any) -> bool:
    return isinstance(source, str) and source.endswith(".safetensors")


def _masks_in_file(path: Path) -> ss.Masks:
    """The masks in a subnetwork file or a masks file."""
    tensors, header = ss.load_tensors(path, "subnetwork or masks file")
    try:
        shapes = {name: tuple(shape) for name, shape in header["shapes"].items()}
        prefix = "mask." if "weights" in header else ""
        return ss.Masks({name: ss.unpack(tensors[prefix + name], shape) for name, shape in shapes.items()})
    except (KeyError, ValueError) as error:
        raise ss.UserError(f"{path} holds no masks: {error}") from error


def _permuted(mask: Tensor, rng: torch.Generator) -> Tensor:
    order = torch.randperm(mask.numel(), generator=rng).to(mask.device)
    return mask.reshape(-1)[order].view(mask.shape)


def _redrawn(weight: Tensor, rng: torch.Generator) -> Tensor:
    return torch.randn(weight.shape, generator=rng).to(weight) * weight.std(correction=0)
