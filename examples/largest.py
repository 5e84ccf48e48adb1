"""Largest: prune the initial weights by magnitude, then train the rest.

A control of the paper's appendix.

    subnet-search extract -s extractor=largest:Largest -s extractor.density=0.2
"""

from subnet_search.extractors.author import Change, Density, Extractor, Paper, Paradigm, Published, magnitude


class Largest(Extractor):
    """Keep the largest initial weights, then train them."""

    paper = Paper("Frankle & Carbin", 2019, "1803.03635", "The Lottery Ticket Hypothesis", "mask = top k of |w| at the start")
    paradigm = Paradigm("before training, by magnitude", "trained", "fixed", True, ("weight", "channel", "n:m", "block"))
    published = Published.none("a control, for any recipe")

    density: Density = 0.1

    def begin(self, net, clock, probe):
        return Change(net.units.keep(net.units.pool(magnitude(net.weights)), self.density))
