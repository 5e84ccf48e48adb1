"""Shared by all other folders: errors, files, random numbers, search domains."""
