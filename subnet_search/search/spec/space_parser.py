"""Parse the items of a study's space: a domain or a fixed value, optionally under conditions."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from subnet_search.core.errors import UserError, blaming, shown, unknown
from subnet_search.core.parameter_names import parameter_name
from subnet_search.core.search_domains import Domain, Int, OneOf, Real, domains
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import flatten
from subnet_search.extractors import Extractor, create, get_extractor
from subnet_search.extractors.base import layer_field
from subnet_search.tasks import Task, UserTask
from subnet_search.topology.units import Measure

DOMAINS = (
    "{float: [low, high], log: true}, {float: [low, high], step: 0.1}, {int: [low, high]} or {choice: [a, b]}, "
    "in ss.suggest ss.Real, ss.Int or ss.OneOf"
)
OPTUNA_WORDS = {"uniform", "loguniform", "categorical", "choices"}
METHOD, LAYERS, TARGET = "extractor", "density_per_layer", "target"
LAYER_DENSITY = Real(0.1, 10.0, log=True)  # relative: 1 is the average density

When = Mapping[str, tuple[Any, ...]]


@dataclass(frozen=True)
class Entry:
    """A key of a run with a domain to search or a fixed value; active only if the conditions in `when` hold."""

    key: str
    domain: Domain | None = None
    value: Any = None
    when: When = field(default_factory=dict)
    spec_key: str = ""
    """Dotted key in the spec, for error messages."""

    @property
    def name(self) -> str:
        """Name of the Optuna parameter."""
        return parameter_name(self.key, ",".join("|".join(map(str, values)) for values in self.when.values()))

    @property
    def distribution(self) -> BaseDistribution:
        """Optuna's distribution of the domain. Raises ValueError for an entry without a domain."""
        match self.domain:
            case Real(low, high, log, step):
                return FloatDistribution(low, high, log=log, step=step)
            case Int(low, high, log, step):
                return IntDistribution(low, high, log=log, step=step or 1)
            case OneOf(choices=choices):
                return CategoricalDistribution([stored(choice) for choice in choices])
        raise ValueError(f"{self.key} is not searched")

    def accepts(self, value: Any) -> bool:
        """Whether a stored value is inside the searched domain."""
        try:
            return self.distribution._contains(self.distribution.to_internal_repr(value))
        except (ValueError, TypeError):
            return False

    def holds(self, chosen: Mapping[str, Any]) -> bool:
        """Whether the conditions hold for the values drawn so far."""
        return all(key in chosen and chosen[key] in values for key, values in self.when.items())


def stored(choice: Any) -> Any:
    """A choice as Optuna can store it: other types than numbers and text become text."""
    return choice if choice is None or isinstance(choice, bool | int | float | str) else str(choice)


def value_of(entry: Entry, value: Any) -> Any:
    """The value of an entry for a stored value."""
    if isinstance(entry.domain, OneOf):
        return next(choice for choice in entry.domain.choices if stored(choice) == value)
    return value


def method_entries(given: Mapping[str, Any], run: RunConfig) -> Iterator[Entry]:
    """Entries for the method, if it is searched, and for the hyperparameters of every method that a trial can have."""
    wanted = given.get(METHOD)
    shared = {key.partition(".")[2] for key in given if key.startswith(f"{METHOD}.")}
    targeted = run.target is not None or any(key.partition(".")[0] == TARGET for key in given)
    if wanted is None:
        return
    spec_key = f"space.{METHOD}"
    if not (isinstance(wanted, Mapping) and "choice" in wanted):
        with blaming(spec_key):
            _check_not_optunas(METHOD, wanted)
        yield from _hyperparameters(type(run.extractor), wanted, {}, shared, targeted, spec_key)
        return
    choice = wanted["choice"]
    if len(wanted) > 1 or not isinstance(choice, list | Mapping) or not choice:
        raise UserError(
            "space.extractor: `choice` takes a list of methods, or a mapping from methods to their searched hyperparameters",
            spec_key,
        )
    for index, method in enumerate(choice):
        with blaming(f"{spec_key}.choice.{index if isinstance(choice, list) else method}"):
            get_extractor(method)
    spaces = (
        dict.fromkeys(choice, "all") if isinstance(choice, list) else {k: "all" if v is None else v for k, v in choice.items()}
    )
    yield Entry(METHOD, OneOf(*spaces), spec_key=spec_key)
    for method, space in spaces.items():
        at = f"{spec_key}.choice.{method}"
        yield from _hyperparameters(get_extractor(method), space, {METHOD: (method,)}, shared, targeted, at)


def _hyperparameters(
    method: type[Extractor], wanted: Any, when: When, shared: set[str], targeted: bool, spec_key: str
) -> Iterator[Entry]:
    """Entries for `all` declared domains of a method, a list of names, or a mapping from names to a domain, a value or null.

    `all` leaves out the density if a target sets it.
    """
    own = domains(method)
    if wanted == "all":
        wanted = dict.fromkeys(name for name in own if not (targeted and name == "density"))
    elif isinstance(wanted, list) and all(isinstance(name, str) for name in wanted):
        wanted = dict.fromkeys(wanted)
    elif not isinstance(wanted, Mapping):
        raise UserError(
            "space.extractor takes {choice: [methods]}, `all`, a list of hyperparameters, or hyperparameters with domains; "
            "one method is set in run.extractor",
            spec_key,
        )
    for name, value in wanted.items():
        with blaming(f"{spec_key}.{name}"):
            if name not in method.model_fields:
                raise unknown(f"hyperparameter of {method.name}", name, own)
            if value is None and name not in own:
                raise UserError(f"space.extractor.{name}: {method.name} declares no domain for it: give one")
            if name not in shared:
                yield from entries_of(f"{METHOD}.{name}", own[name] if value is None else value, when, f"{spec_key}.{name}")


def layer_entries(given: Mapping[str, Any]) -> list[Entry]:
    """An entry for the relative density of each layer that the space lists. Raises UserError when it is not a list."""
    layers = given.get(LAYERS) or []
    if layers is True:
        return []  # the layers are filled in when the study is created
    if not isinstance(layers, list) or not all(isinstance(layer, str | int) for layer in layers):
        raise UserError(f"space.{LAYERS} takes true, or a list of layers", f"space.{LAYERS}")
    return [Entry(f"{LAYERS}.{layer}", LAYER_DENSITY, spec_key=f"space.{LAYERS}") for layer in layers]


def entries_of(key: str, value: Any, when: When | None = None, spec_key: str = "") -> list[Entry]:
    """Entries of one item of the space. `spec_key` is its dotted key in the spec."""
    spec_key = spec_key or f"space.{key}"
    if isinstance(value, list) and value and all(isinstance(item, Mapping) and "when" in item for item in value):
        return [e for index, item in enumerate(value) for e in entries_of(key, item, when, f"{spec_key}.{index}")]
    with blaming(spec_key):
        if isinstance(value, Mapping) and "when" in value:
            given, rest = value["when"], {name: inner for name, inner in value.items() if name != "when"}
            if not isinstance(given, Mapping) or not given or not rest or [] in given.values():
                raise UserError(f"space.{key}: a condition takes `when: {{key: value}}` and a domain or `value:`")
            conditions = {name: tuple(v) if isinstance(v, list) else (v,) for name, v in given.items()}
            inner = rest["value"] if set(rest) == {"value"} else rest
            return entries_of(key, inner, {**(when or {}), **conditions}, spec_key)
        domain = _domain(key, value)
        return [Entry(key, domain, None if domain else value, when or {}, spec_key)]


def _domain(key: str, value: Any) -> Domain | None:
    """The domain of an item of the space; None for a fixed value."""
    if isinstance(value, Real | Int | OneOf):
        return value
    kinds = [kind for kind in ("float", "int", "choice") if isinstance(value, Mapping) and kind in value]
    if not kinds:
        _check_not_optunas(key, value)
        return None
    if extra := set(value) - {kinds[0]} - ({"log", "step"} if kinds[0] != "choice" else set()):
        raise UserError(f"space.{key}: {kinds[0]} cannot be combined with {', '.join(sorted(map(str, extra)))}")
    given, log, step = value[kinds[0]], value.get("log", False), value.get("step")
    if not isinstance(given, list) or not given or (kinds[0] != "choice" and len(given) != 2):
        wanted = "a list of values" if kinds[0] == "choice" else "[low, high]"
        raise UserError(f"space.{key}: {kinds[0]} takes {wanted}, got {shown(given)}")
    if not isinstance(log, bool):
        raise UserError(f"space.{key}: log is true or false, got {shown(log)}")
    if kinds[0] == "choice":
        return OneOf(*given)
    low, high = (_bound(key, kinds[0], end) for end in given)
    if kinds[0] == "int" and isinstance(step, float):
        raise UserError(f"space.{key}: the step of int is a whole number, got {step}")
    try:
        return Real(low, high, log, step) if kinds[0] == "float" else Int(int(low), int(high), log, step)
    except UserError as error:
        raise UserError(f"space.{key}: {error}") from error


def _check_not_optunas(key: str, value: Any) -> None:
    """Raise UserError for a distribution of Optuna, or a mapping with the words of one or of a `suggest_` function."""
    words = set(map(str, value)) if isinstance(value, Mapping) else set()
    in_words = {"low", "high"} <= words or words & OPTUNA_WORDS or any(word.startswith("suggest_") for word in words)
    if in_words or isinstance(value, BaseDistribution):
        raise UserError(f"space.{key}: a domain is {DOMAINS}, got {shown(value)}")


def _bound(key: str, kind: str, given: Any) -> float:
    """A checked end of a range. Raises UserError for a value that is not finite, or not whole if kind is int."""
    try:
        value = math.nan if isinstance(given, bool) else given if isinstance(given, int) else float(given)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value) or (kind == "int" and value != int(value)):
        wanted = "numbers" if kind == "float" else "whole numbers"
        raise UserError(f"space.{key}: {kind} takes {wanted} as low and high, got {shown(given)}")
    return value


def check_key(key: str, method: type[Extractor], task: Task) -> None:
    """Raise UserError for a key that a run of this method and task does not have."""
    if key == "seed":
        raise UserError("space.seed cannot be searched: each trial's seed is derived from the study's seed")
    if key in ("task", "task.name"):
        raise UserError(f"space.{key}: all trials of a study have one task, which its metrics are of: set run.task")
    if key == METHOD or (isinstance(task, UserTask) and key.startswith("task.")):  # the task itself accepts its settings
        return
    if key.startswith(f"{LAYERS}."):
        if layer_field(method) is None:
            raise UserError(f"space.{LAYERS}: {method.name} does not support densities by layer: remove the method or {LAYERS}")
        return
    run = RunConfig(extractor=create(method.name), task=task)
    defaults: dict[str, Any] = {**run.dump(), TARGET: dict.fromkeys(get_args(Measure))}
    if key in defaults or key in (valid := flatten(defaults)):
        return
    if key.startswith(f"{METHOD}."):
        raise unknown(f"hyperparameter of {method.name}", key.partition(".")[2], method.model_fields, where="space")
    ends = [name for name in valid if name.rpartition(".")[2] == key]
    raise unknown("key of a run", key, ends or valid, where="space")
