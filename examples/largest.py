"""Largest: keep the largest initial weights, then train them.

Frankle & Carbin 2019, arXiv:1803.03635, appendix: the control that prunes the initial weights by magnitude.

    subnet-search extract -s extractor=largest:Largest -s extractor.density=0.2
"""

from typing import Annotated

from subnet_search.extractors.author import Change, Density, Extractor, Paper, Paradigm, Published, Real, magnitude


class Largest(Extractor):
    """Keep the largest initial weights, then train them."""

    paper = Paper("Frankle & Carbin", 2019, "1803.03635", "The Lottery Ticket Hypothesis", "mask = top k of |w| at the start")
    paradigm = Paradigm("before training, by magnitude", "trained", "fixed", True, ("weight", "channel", "n:m", "block"))
    published = Published.none("a control, for any recipe")

    density: Annotated[Density, Real(0.01, 0.5, log=True)] = 0.1
    """Fraction of prunable units kept."""

    def begin(self, net, clock, probe):
        return Change(net.units.keep(net.units.pool(magnitude(net.weights)), self.density))
