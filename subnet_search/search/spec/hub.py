"""Samplers and callbacks of OptunaHub, by the name of their package: `{hub: samplers/auto_sampler, option: value}`."""

import inspect
import logging
import re
import warnings
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import optuna
from optuna.samplers import BaseSampler

from subnet_search.core.errors import UserError, reason, shown, unknown

OWN = ("name", "hub", "folder", "ref", "class")  # keys that are not options of the class
PACKAGE = re.compile(r"\w[\w-]*/\w[\w-]*")
COMMIT = re.compile(r"[0-9a-f]{7,40}")

log = logging.getLogger(__name__)


def check_hub(kind: str, settings: Mapping[str, Any]) -> None:
    """Raise UserError for settings that cannot name a package. Imports nothing. kind: "sampler" or "callback"."""
    for key in OWN:
        if key in settings and not (isinstance(settings[key], str) and settings[key]):
            raise UserError(f"{key} must be text, got {shown(settings[key])}")
    if not PACKAGE.fullmatch(settings["hub"]) or not settings["hub"].startswith(f"{kind}s/"):
        raise UserError(f"hub: give the package as in {kind}s/NAME, got {settings['hub']!r}")
    if "folder" in settings and "ref" in settings:
        raise UserError("folder and ref exclude each other: ref is the commit, tag or branch to download")


def warn_if_moving(key: str, settings: Any) -> None:
    """Warn of a package whose reference is no commit: it is a branch (by default main) or tag, which can change."""
    if not isinstance(settings, Mapping) or "hub" not in settings or "folder" in settings:
        return
    ref = settings.get("ref", "main")
    if not COMMIT.fullmatch(ref):
        log.warning(
            "%s: %s is downloaded from %r, which can change between workers: write the commit of the registry, as in ref: %s",
            key,
            settings["hub"],
            ref,
            "3f2a1c9 (github.com/optuna/optunahub-registry/commits)",
        )


def class_from_hub(kind: str, settings: Mapping[str, Any]) -> tuple[type, dict[str, Any]]:
    """The class of a package, and the options in `settings`.

    Raises UserError if optunahub or what the package needs is not installed, the package cannot be downloaded, or an option
    is unknown.
    """
    package = settings["hub"]
    module = _package(package, settings.get("folder"), settings.get("ref"))
    found = _class_in(module, kind, package, settings.get("class"))
    options = {key: value for key, value in settings.items() if key not in OWN}
    parameters = inspect.signature(found).parameters
    if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values()):
        for key in options.keys() - parameters.keys():
            raise unknown("option", key, parameters, where=f"{kind} {package}")
    return found, options


def make_from_hub(kind: str, settings: Mapping[str, Any], seed: int | None = None) -> Any:
    """An object of the package's class; `seed` is passed if the class takes it and `settings` do not have it.

    Raises UserError as `class_from_hub`, and if the class refuses the options.
    """
    package, (found, options) = settings["hub"], class_from_hub(kind, settings)
    seeded = {"seed": seed} if seed is not None and "seed" in inspect.signature(found).parameters else {}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return found(**{**seeded, **options})
    except ImportError as error:
        raise _missing(package, error) from error
    except Exception as error:
        raise UserError(f"the {kind} {package}: {reason(error)}") from error


@lru_cache
def _package(package: str, folder: str | None, ref: str | None) -> ModuleType:
    try:
        import optunahub
    except ImportError as error:
        raise UserError(f"{package} of OptunaHub needs optunahub: pip install 'subnet-search[hub]'") from error
    try:
        if folder is not None:
            return optunahub.load_local_module(package, registry_root=str(Path(folder).expanduser()))
        return optunahub.load_module(package, ref=ref or "main")
    except FileNotFoundError as error:
        if folder is None:
            raise _unreachable(package, error) from error
        raise UserError(f"no {package} in {folder}: give the folder that has samplers/ and callbacks/") from error
    except ImportError as error:
        raise _missing(package, error) from error
    except Exception as error:  # of git or of GitHub's API; or anything that the package raises when imported
        raise UserError(f"cannot load {package}: {reason(error)}") if folder else _unreachable(package, error) from error


def _class_in(module: ModuleType, kind: str, package: str, name: str | None) -> type:
    """The class of a package: the one named, or the only sampler or callback that it offers."""
    offered = {one: getattr(module, one, None) for one in getattr(module, "__all__", dir(module))}
    classes = {
        one: value
        for one, value in offered.items()
        if isinstance(value, type) and (issubclass(value, BaseSampler) if kind == "sampler" else "__call__" in vars(value))
    }
    classes = {one: value for one, value in classes.items() if not inspect.isabstract(value)}
    if name is not None and name not in classes:
        raise unknown(kind, name, classes, where=package)
    if name is None and len(classes) != 1:
        raise UserError(
            f"{package} has {len(classes)} {kind}s: choose one with class: {' or '.join(sorted(classes)) or 'NAME'}"
        )
    return classes[name] if name else next(iter(classes.values()))


def _missing(package: str, error: ImportError) -> UserError:
    absent = error.name if isinstance(error, ModuleNotFoundError) and error.name and "." not in error.name else None
    if absent:
        return UserError(f"{package} of OptunaHub needs a package that is not installed: pip install {absent}")
    return UserError(f"{package} of OptunaHub cannot be imported: {reason(error)}")


def _unreachable(package: str, error: Exception) -> UserError:
    return UserError(
        f"cannot download {package} from OptunaHub: {reason(error)}; without a network, set `folder` to the folder `package` "
        "of a copy of github.com/optuna/optunahub-registry"
    )
