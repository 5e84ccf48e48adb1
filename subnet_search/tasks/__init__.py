"""Tasks: what a network is trained for, and how its outputs are measured."""

from subnet_search.tasks.classification import Classification, Criterion

__all__ = ["Classification", "Criterion"]
