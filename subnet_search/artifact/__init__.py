"""The artifact of a run: the subnetwork file and the mask file."""

from subnet_search.artifact.subnetwork import Origin, Subnetwork

__all__ = ["Origin", "Subnetwork"]
