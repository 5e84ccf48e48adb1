"""The artifact of a run, and what can be made of it."""

from subnet_search.deploy.subnetwork import Origin, Subnetwork

__all__ = ["Origin", "Subnetwork"]
