"""Shuffled: controls that test what a topology's pattern, and the weights it was found on, contribute.

Section 5. Takes the topology that another method begins with, or that of a file, and then permutes it within every layer
(`permute`), draws new weights (`redraw`), or both. Where accuracy stays the same, the method found no more than the number of
weights of each layer. New weights are normal, with each layer's own standard deviation.
"""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import ValidationError, field_validator
from torch import Tensor

from subnet_search.extractors.author import (
    Change,
    Clock,
    Density,
    Extractor,
    Masks,
    Network,
    OneOf,
    Paper,
    Paradigm,
    Probe,
    Published,
    Real,
    Tensors,
    Units,
    UserError,
    create,
    invalid,
    load_tensors,
    register,
    unpack,
)


@register("shuffled")
class Shuffled(Extractor):
    """Take another method's topology, permute it within layers or draw new weights, then train: a control."""

    paper = Paper(
        "Frankle, Dziugaite, Roy & Carbin",
        2021,
        "2009.08576",
        "Pruning Neural Networks at Initialization: Why Are We Missing the Mark?",
        "m_l <- a random permutation of m_l; w <- N(0, std(w_l)^2)",
    )
    paradigm = Paradigm("another method's, permuted, before training", "trained", "fixed", True)
    published = Published.none("a control, to be trained with the recipe of the method whose topology it shuffles")

    source: str | dict[str, Any] = "snip"
    """Whose topology: a method, with its hyperparameters or without, or the path of a subnetwork or masks file."""
    density: Annotated[Density | None, Real(0.01, 0.5, log=True)] = None
    """Fraction of prunable weights kept. None: as the source has it."""
    permute: Annotated[bool, OneOf(False, True)] = True
    """Permute the topology within every layer."""
    redraw: Annotated[bool, OneOf(False, True)] = False
    """Draw new weights."""

    @field_validator("source")
    @classmethod
    def _known(cls, source: Any) -> Any:
        if not _is_file(source):
            try:
                create(source)
            except ValidationError as error:
                raise invalid(error) from error
        return source

    def check(self, units: Units, clock: Clock) -> None:
        if not _is_file(self.source):
            self._source().check(units, clock)

    def begin(self, net: Network, clock: Clock, probe: Probe) -> Change:
        masks = self._topology(net, clock, probe)
        if self.permute:
            masks = Masks({name: _permuted(mask, clock.generator("permute", name)) for name, mask in masks.items()})
        return Change(masks, weights=_drawn(net.weights, clock) if self.redraw else None)

    def _topology(self, net: Network, clock: Clock, probe: Probe) -> Masks:
        if _is_file(self.source):
            masks = _read(Path(str(self.source)))
            if {n: m.shape for n, m in masks.items()} != {n: w.shape for n, w in net.weights.items()}:
                raise UserError(f"{self.source} holds the masks of another network")
            if self.density is not None:
                raise UserError(f"shuffled: the density is that of {self.source}; leave it out")
            return masks
        source = self._source()
        found = source.begin(net, clock, probe).masks
        if found is None:
            raise UserError(f"shuffled: {source.name} finds its topology while it trains; give the file that it wrote")
        return found

    def _source(self) -> Extractor:
        given = {"name": self.source} if isinstance(self.source, str) else dict(self.source)
        return create(given if self.density is None else {**given, "density": self.density})


def _is_file(source: Any) -> bool:
    return isinstance(source, str) and source.endswith(".safetensors")


def _read(path: Path) -> Masks:
    """The masks in a subnetwork file or a masks file."""
    tensors, header = load_tensors(path, "subnetwork or masks file")
    try:
        shapes = {name: tuple(shape) for name, shape in header["shapes"].items()}
        prefix = "mask." if "weights" in header else ""
        return Masks({name: unpack(tensors[prefix + name], shape) for name, shape in shapes.items()})
    except (KeyError, ValueError) as error:
        raise UserError(f"{path} holds no masks: {error}") from error


def _permuted(mask: Tensor, rng: torch.Generator) -> Tensor:
    order = torch.randperm(mask.numel(), generator=rng).to(mask.device)
    return mask.reshape(-1)[order].view(mask.shape)


def _drawn(weights: Tensors, clock: Clock) -> dict[str, Tensor]:
    drawn = {}
    for name, weight in weights.items():
        normal = torch.randn(weight.shape, generator=clock.generator("redraw", name)).to(weight)
        drawn[name] = normal * weight.std(correction=0)
    return drawn
