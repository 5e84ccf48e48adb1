"""Largest: prune the initial weights by magnitude, then train the rest.

A control of the paper's appendix.

    subnet-search extract -s extractor=largest:Largest -s extractor.density=0.2
"""

from subnet_search.extractors import author as ss


class Largest(ss.Extractor):
    """Keep the largest initial weights, then train them."""

    paper = ss.Paper(
        "Frankle & Carbin", 2019, "1803.03635", "The Lottery Ticket Hypothesis", "mask = top k of |w| at the start"
    )
    paradigm = ss.Paradigm("before training, by magnitude", "trained", "fixed", True, ("weight", "channel", "n:m", "block"))
    published = ss.Published.none("a control, for any recipe")

    density: ss.Density = 0.1

    def begin(self, net, clock, probe):
        return ss.Change(net.units.keep(net.units.pool(ss.magnitude(net.weights)), self.density))
