"""Masks, scores and selection of units, on tensors only: no modules, optimizers or data."""
