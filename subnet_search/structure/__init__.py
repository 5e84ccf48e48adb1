"""The channels of a network: which depend on which, and what is left when some are removed."""
