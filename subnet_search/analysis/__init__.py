"""Analyses of masks and of pruning, and plots."""
