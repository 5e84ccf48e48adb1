"""Optuna's private artifact store protocol, in a separate module because importing it imports boto3."""

from optuna.artifacts._protocol import ArtifactStore as ArtifactStore

__all__ = ["ArtifactStore"]
