"""The search space of a study: keys of a run with domains, some of them conditional on other keys.

    space:
      extractor: {choice: [gumbel, granet, synflow]}      # each method adds the domains that it declares
      extractor.density: 0.1                              # fixed, the same for all methods
      recipe.lr:                                          # conditions written by hand
        - {when: {extractor: gumbel}, float: [10, 100], log: true}
        - {when: {extractor: [granet, synflow]}, float: [0.01, 0.3], log: true}
      density_per_layer: true                             # a relative density for every layer

A parameter is named by its key. The name of a conditional parameter includes the condition, as in
`recipe.lr @granet|synflow`, so that each name has one domain in a study.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import optuna
from optuna.trial import FixedTrial, FrozenTrial

from subnet_search.core.errors import UserError, blaming, unknown
from subnet_search.core.search_domains import Int, OneOf, Real
from subnet_search.data import Data, load
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import with_values
from subnet_search.extraction.passed import INIT, NOTHING, PLACEHOLDER, Passed, config_like, is_object
from subnet_search.extraction.session import make_network
from subnet_search.extractors import get_extractor
from subnet_search.extractors.base import layer_field, trains_weights
from subnet_search.nets import build, network_names, own_copy, prunable
from subnet_search.search.spec.space_parser import (
    LAYERS,
    METHOD,
    TARGET,
    Entry,
    check_key,
    entries_of,
    layer_entries,
    method_entries,
    stored,
    value_of,
)
from subnet_search.structure.units_of_network import units_of
from subnet_search.tasks import UserTask, inputs_sent
from subnet_search.topology.select import layer_name
from subnet_search.training import Recipe

DECISIVE = (METHOD, "unit")  # keys that determine which values of other keys are valid


class Space:
    """The entries of a study's space, and the run configuration of a trial."""

    def __init__(self, given: Mapping[str, Any], run: RunConfig, empty: bool = False) -> None:
        self.run = run
        _check_objects(given, run)
        self.entries = [*method_entries(given, run), *layer_entries(given)]
        for key, value in given.items():
            if key not in (METHOD, LAYERS):
                self.entries += entries_of(key, value)
        self.entries.sort(key=lambda entry: bool(entry.when))  # unconditional entries first: conditions refer to them
        self._check()
        if not self.searched and not empty and given.get(LAYERS) is not True:
            raise UserError(
                "space: nothing is searched: give a key a domain, {float: [low, high]}, {int: [low, high]} or {choice: [...]}",
                "space",
            )

    @property
    def searched(self) -> list[Entry]:
        """The entries that have a domain; the others have one value."""
        return [entry for entry in self.entries if entry.domain is not None]

    def layers(self, passed: Passed = NOTHING) -> list[str]:
        """Module names of the layers for `density_per_layer`. Raises UserError if trials can have different units."""
        runs = [self.config(branch) for branch in self.branches]
        units = sorted({run.unit for run in runs})
        if len(units) > 1:
            raise UserError(f"space.{LAYERS}: the units {' and '.join(units)} have different layers: use one unit")
        run = runs[0]
        data = load(run.data, run.task.kind_of_labels) if passed.data is None else passed.data
        outputs = run.task.outputs(data)
        module = passed.network
        net = (
            build(run.network.resolve(1.0, run.task.name).without_state, data.shape, outputs, 0)
            if module is None
            else own_copy(module)
        )
        example = inputs_sent(net, run.task, data.first(), run.network.name, outputs)
        found = units_of(
            run.unit, net, data.shape, example=example, every=isinstance(run.task, UserTask), dense_layers=run.dense_layers
        )
        return [layer_name(name) for name in found.weights if name in found.shapes]

    def networks(self) -> Iterator[RunConfig]:
        """A run with each network that a trial can have."""
        first = self.branches[0]
        others = (entry for entry in self.searched if entry.key.startswith("network") and entry.domain and not entry.when)
        choices = ({**first, entry.key: value} for entry in others for value in (entry.domain.bounds() if entry.domain else ()))
        yield from map(self.config, (first, *choices))

    def check_networks(self, passed: Passed = NOTHING) -> None:
        """Build each network that a trial can have and that is not built in, and call it with real data.

        Raises UserError when one cannot be built, or does not accept the data.
        """
        loaded: dict[str, Data] = {}
        checked: set[str] = set()
        for run in self.networks():
            key = f"{run.network.model_dump_json()} {run.data.model_dump_json()}"
            key += json.dumps(run.dense_layers)
            if (run.network.name in network_names() and not run.dense_layers) or key in checked:
                continue
            checked.add(key)
            name = run.data.model_dump_json()
            if passed.data is None and name not in loaded:
                loaded[name] = load(run.data, run.task.kind_of_labels)
            data = passed.data or loaded[name]
            network = run.network.resolve(run.extractor.target_density or 1.0, run.task.name)
            run, task = run.model_copy(update={"network": network}), run.task.fitted(data, "cpu")
            net, _ = make_network(run, passed.network, str(network.init), data, task)
            prunable(net, run.dense_layers)

    @property
    def conditional(self) -> bool:
        """Whether some parameters are searched only for some values of others."""
        return any(entry.when for entry in self.searched)

    def suggest(self, trial: optuna.Trial | FixedTrial | FrozenTrial) -> dict[str, Any]:
        """Draw a value for every active key of the space."""
        return self.choose(lambda entry: value_of(entry, trial._suggest(entry.name, entry.distribution)))

    def named(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna parameters for values of keys. Raises UserError for a key or value outside the space."""
        found: dict[str, Any] = {}

        def take(entry: Entry) -> Any:
            if entry.key not in values:
                return None
            text = stored(values[entry.key])
            if not entry.accepts(text):
                raise UserError(f"{entry.key}: {values[entry.key]!r} is outside the searched domain {entry.domain}")
            found[entry.name] = text
            return values[entry.key]

        chosen = self._seen(self.choose(take))
        if missing := [key for key, value in values.items() if value is not None and chosen.get(key) != value]:
            raise unknown("searched key", missing[0], {entry.key for entry in self.searched})
        return found

    def config(self, values: Mapping[str, Any]) -> RunConfig:
        """The run configuration for these values. Raises UserError if it is invalid."""
        given = self.run.given()
        if given.get(TARGET) and METHOD in given:
            given[METHOD].pop("density", None)  # the target sets it
        method = values.get(METHOD, self.run.extractor.name)
        own = given.get(METHOD, {"name": self.run.extractor.name})
        # One batch size for all methods, so that all trials have the same number of steps.
        fixed = {**own_rates(method, given), "recipe.batch_size": self.run.recipe.batch_size} if METHOD in values else {}
        base = with_values({**given, METHOD: own if own["name"] == method else {"name": method}}, fixed)
        seen = self._seen(values)
        pinned = {entry.key: entry.value for entry in self.entries if entry.domain is None and entry.holds(seen)}
        rest = {key: value for key, value in values.items() if key != METHOD and not key.startswith(f"{LAYERS}.")}
        layers = {key.removeprefix(f"{LAYERS}."): value for key, value in values.items() if key.startswith(f"{LAYERS}.")}
        if layers:
            rest[f"{METHOD}.{layer_field(get_extractor(method))}"] = layers
        return config_like(self.run, with_values(with_values(base, pinned), rest))

    def words(self) -> dict[str, str]:
        """Parameters with their domains as text, for display and comparison."""
        return {entry.name: str(entry.domain) for entry in self.searched}

    def pinned(self) -> dict[str, Any]:
        """Values of the entries that are not searched, by name."""
        return {entry.name: entry.value for entry in self.entries if entry.domain is None}

    def methods(self) -> list[str]:
        """The methods that trials may have."""
        for entry in self.searched:
            if entry.key == METHOD and isinstance(entry.domain, OneOf):
                return list(entry.domain.choices)
        return [self.run.extractor.name]

    def choose(self, draw: Callable[[Entry], Any]) -> dict[str, Any]:
        """The values that `draw` returns for the active keys of the space."""
        chosen: dict[str, Any] = {}
        for entry in self.entries:
            if entry.domain is not None and entry.holds(self._seen(chosen)):
                chosen[entry.key] = draw(entry)
        return chosen

    def _seen(self, chosen: Mapping[str, Any]) -> dict[str, Any]:
        """The values that conditions can refer to: drawn ones and fixed ones."""
        seen = dict(chosen)
        for entry in self.entries:
            if entry.domain is None and entry.holds(seen):
                seen.setdefault(entry.key, entry.value)
        return seen

    @cached_property
    def branches(self) -> list[dict[str, Any]]:
        """Every combination of method and unit that a trial can have."""
        found: list[dict[str, Any]] = [{}]
        for entry in self.entries:
            if entry.key in DECISIVE and entry.domain:
                values = entry.domain.bounds()
                found = [
                    {**branch, **more}
                    for branch in found
                    for more in ([{entry.key: v} for v in values] if entry.holds(self._seen(branch)) else [{}])
                ]
        return found

    def _check(self) -> None:
        """Check that both ends of every domain make a valid run with every method and unit."""
        keys = {entry.key for entry in self.entries}
        for entry in self.entries:
            with blaming(entry.spec_key):
                for key in entry.when:
                    if key not in keys:
                        raise UserError(f"space.{entry.key}: `when` refers to {key!r}, which the space does not search or set")
                    self._check_condition(entry, key)
                for method in self.methods() if METHOD not in entry.when else entry.when[METHOD]:
                    check_key(entry.key, get_extractor(method), self.run.task)
        for branch in self.branches:
            if len(amounts := self._amounts(branch)) > 1:
                both = f"space: {' and '.join(amounts)} both set the density: remove one of them"
                raise UserError(both, f"space.{amounts[0]}")
        for entry in self.searched:
            with blaming(entry.spec_key):
                for value in entry.domain.bounds() if entry.domain else ():
                    self._check_value(entry, value)

    def _amounts(self, branch: Mapping[str, Any]) -> list[str]:
        """The keys that set the density in the trials of a branch."""
        found = self._seen(self.choose(lambda entry: branch.get(entry.key)))
        if TARGET not in found:
            found |= {f"{TARGET}.{measure}": None for measure in self.run.target or ()}
        return [key for key in found if key == f"{METHOD}.density" or key.partition(".")[0] == TARGET]

    def _check_condition(self, entry: Entry, key: str) -> None:
        """Raise UserError for a condition that no trial can satisfy."""
        others = [other for other in self.entries if other.key == key]
        possible = [value for other in others for value in (other.domain.bounds() if other.domain else (other.value,))]
        wanted, ranges = entry.when[key], any(isinstance(other.domain, Real | Int) for other in others)
        if not ranges and not any(value in possible for value in wanted):
            raise unknown(key, wanted[0], map(str, possible), where=f"`when` of space.{entry.key}")

    def _check_value(self, entry: Entry, value: Any) -> None:
        """Raise UserError for a value that is invalid in a branch; the message names the branch if others accept it."""
        first = {key: values[0] for key, values in entry.when.items()}
        branches = [b for b in self.branches if b.get(entry.key, value) == value and entry.holds(self._seen({**first, **b}))]
        valid, refused = [], []
        for branch in branches:
            try:
                self.config({**first, **branch, entry.key: value})
                valid.append(branch)
            except UserError as error:
                refused.append((branch, str(error)))
        if not refused or (valid and entry.key == METHOD):  # the error is raised for the other key
            return
        branch, why = refused[0]
        if not valid:
            raise UserError(f"space: {why}")
        others = (key for key in branch if key != entry.key)
        apart = next((key for key in others if all(other.get(key) != branch[key] for other in valid)), METHOD)
        where = ", ".join(f"{key} {text}" for key, text in branch.items())
        raise UserError(f"space: {why} (in trials with {where}); restrict the key with `when: {{{apart}: ...}}`")


def own_rates(method: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The published lr and weight_decay of a method that trains masks but no weights, as changes to the run.

    `recipe.lr` and `recipe.weight_decay` of a run that compares methods are for weights. Empty for a method that trains
    weights, and for a configuration written for this method, which sets its own.
    """
    cls = get_extractor(method)
    if trains_weights(cls) or given.get(METHOD, {}).get("name") == method:
        return {}
    published = Recipe(**cls.published.recipe)
    return {"recipe.lr": published.lr, "recipe.weight_decay": published.weight_decay}


def _check_objects(keys: Iterable[str], run: RunConfig) -> None:
    """Raise UserError for keys of a space that have no effect, because the part of the run was passed as an object."""
    objects = {part for part in ("network", "data") if getattr(run, part).name.startswith(f"{PLACEHOLDER}:")}
    objects |= {"task"} if is_object(run.task) else set()
    for key in keys:
        part, _, name = key.partition(".")
        if part in objects and not (part == "network" and name in INIT):
            raise UserError(
                f"space: the {part} was passed as a Python object, so {key} cannot be set or searched", f"space.{key}"
            )
