"""The versions that a result depends on."""

import functools
import importlib.metadata
import platform


def versions() -> dict[str, str]:
    """What a result depends on besides its configuration."""
    return {**_packages(), "python": platform.python_version(), "machine": f"{platform.system()} {platform.machine()}"}


@functools.cache
def _packages() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("subnet-search", "torch", "numpy")}
