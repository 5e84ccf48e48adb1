"""Analyses of masks and of pruning, and their plots."""
