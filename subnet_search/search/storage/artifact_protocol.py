"""Optuna's protocol of artifact stores, a private name; apart from the others, since importing it imports boto3."""

from optuna.artifacts._protocol import ArtifactStore as ArtifactStore

__all__ = ["ArtifactStore"]
