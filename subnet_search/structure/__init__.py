"""Channels of a network: their dependencies, and networks with some of them removed."""
