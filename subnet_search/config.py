"""A run's complete configuration, and reading it from YAML with errors that name the file, the line and the key."""

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from annotated_types import Gt, Le
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationError,
    ValidationInfo,
    WrapSerializer,
    field_validator,
    model_validator,
)
from pydantic import SerializerFunctionWrapHandler as Serialize

from subnet_search.data import DataSpec
from subnet_search.documents import Document, Number, read_file, read_text
from subnet_search.errors import UserError, invalid, nearest, reading
from subnet_search.extractors import Extractor, create, extractor_names, get_extractor
from subnet_search.nets import NetworkSpec
from subnet_search.settings import Settings
from subnet_search.topology.units import parse
from subnet_search.training import Recipe

M = TypeVar("M", bound=BaseModel)


def _with_name(extractor: Extractor, dump: Serialize) -> dict[str, Any]:
    return {"name": extractor.name, **dump(extractor)}


AnyExtractor = Annotated[SerializeAsAny[Extractor], BeforeValidator(create), WrapSerializer(_with_name)]


DEFAULT_UNITS = {"weight": "weight", "channel": "channel", "n:m": "2:4", "block": "block:4"}
DEFAULTS = {"network": "lenet5", "data": "digits", "extractor": "gumbel"}


def _unnamed(value: Any) -> bool:
    return isinstance(value, Mapping) and "name" not in value


class RunConfig(Settings):
    """Everything that decides what a run finds. Complete: every key has a default."""

    network: NetworkSpec = NetworkSpec(name=DEFAULTS["network"])
    """The network to look into."""
    data: DataSpec = DataSpec(name=DEFAULTS["data"])
    """The data it is judged on."""
    extractor: AnyExtractor = Field(default_factory=lambda: create(DEFAULTS["extractor"]))
    """The method, and its hyperparameters."""
    unit: str = "weight"
    """What is kept or dropped as one: weight, channel, n:m (2:4), or block:size (block:16). Default: the method's first."""
    round_to: int | None = Field(default=None, ge=1)
    """Channels are kept in multiples of this. Default: 16, and less in groups of fewer than 64."""
    target: dict[Literal["units", "parameters", "flops"], Annotated[float, Gt(0), Le(1)]] | None = Field(
        default=None, min_length=1, max_length=1
    )
    """The density, as a fraction of units, parameters or FLOPs: {flops: 0.5}. Default: the extractor's, of units."""
    recipe: Recipe = Recipe()
    """How the network is trained."""
    seed: int = Field(default=0, ge=0)
    """Decides the weights, every draw and the order of the images; not the validation split (data.split_seed)."""
    weights: Literal["values", "seed"] = "values"
    """What the subnetwork file stores of the weights: the kept values, or nothing but the seed that makes them."""

    @model_validator(mode="before")
    @classmethod
    def _default_names(cls, values: Any) -> Any:
        """Let `extractor: {density: 0.3}` mean the default extractor."""
        if not isinstance(values, Mapping):
            return values
        unnamed = {key: {"name": name, **values[key]} for key, name in DEFAULTS.items() if _unnamed(values.get(key))}
        return {**values, **unnamed}

    @field_validator("unit")
    @classmethod
    def _unit_supported(cls, unit: str, info: ValidationInfo) -> str:
        kind, _ = parse(unit)
        extractor = info.data.get("extractor")
        if extractor is not None and kind not in extractor.paradigm.units:
            raise UserError(f"{extractor.name} does not support {unit!r}, only {', '.join(extractor.paradigm.units)}")
        return unit

    @field_validator("round_to")
    @classmethod
    def _round_channels(cls, round_to: int | None, info: ValidationInfo) -> int | None:
        unit, extractor = info.data.get("unit"), info.data.get("extractor")
        own = extractor is not None and extractor.paradigm.units[0] == "channel"
        if round_to is not None and unit != "channel" and not (own and unit == "weight"):
            raise UserError(f"round_to is for channels, and the unit is {unit}")
        return round_to

    @field_validator("target")
    @classmethod
    def _one_density(cls, target: dict[str, float] | None, info: ValidationInfo) -> dict[str, float] | None:
        extractor = info.data.get("extractor")
        if target is None or extractor is None:
            return target
        if "density" not in type(extractor).model_fields:
            raise UserError(f"{extractor.name} has no density to reach a target with")
        if "density" in extractor.model_fields_set and extractor.density not in target.values():
            raise UserError("extractor.density and target both say how much is kept: leave one of them out")
        return target

    @model_validator(mode="after")
    def _fill_in(self) -> "RunConfig":
        if "unit" not in self.model_fields_set:
            object.__setattr__(self, "unit", DEFAULT_UNITS[self.extractor.paradigm.units[0]])
            self.__pydantic_fields_set__.discard("unit")
        if self.target is not None:
            [density] = self.target.values()
            # Checked again, since a density that is allowed may not be with the extractor's other values.
            changed = type(self.extractor).model_validate({**self.extractor.model_dump(), "density": density})
            object.__setattr__(self, "extractor", changed)
        return self

    def resolve(self) -> "RunConfig":
        """The same configuration with every default filled in, this machine's device and threads included."""
        density = getattr(self.extractor, "density", None)
        return self.model_copy(
            update={"network": self.network.resolve(density), "recipe": self.recipe.resolve(self.extractor.published.recipe)}
        )

    def dump(self) -> dict[str, Any]:
        """Plain values, as they are written to YAML and JSON."""
        return self.model_dump(mode="json")

    def given(self) -> dict[str, Any]:
        """Only what was set, as plain values: defaults stay open, so an override can still move them."""
        return self.model_dump(mode="json", exclude_unset=True)


def read_config(model: type[M], path: str | Path | None, overrides: Iterable[str] = ()) -> M:
    """A checked model from a YAML file (or from defaults alone) and overrides like `extractor.density=0.2`.

    Raises UserError: one line that names the file, the line, the key, and what would be right.
    """
    found = Document({}) if path is None else _read(Path(path))
    values, places = found.values, found.places
    for override in overrides:
        key, separator, text = (part.strip() for part in override.partition("="))
        if not separator or not key or "@" in key or "://" in key:
            raise UserError(f"an override is key=value, got {override!r}")
        put(values, key, read_text(text, f"the value of -s {key}").values)
        places = {name: place for name, place in places.items() if not name.startswith(f"{key}.")}
        places[key] = f"-s {key}"  # not the value: it may hold a secret
    return check(model, typed(values, model), places)


def check(model: type[M], values: Mapping[str, Any], places: Mapping[str, str] | None = None) -> M:
    """`values` as a `model`. Raises UserError with the first mistake in one line, and its place if `places` has its key."""
    places = places or {}
    with reading(places.get("", "the settings")):
        try:
            return model.model_validate(values)
        except ValidationError as error:
            raise UserError(_describe(model, values, error, places)) from error


def typed(value: Any, kind: Any = None) -> Any:
    """What was read as plain values. A number is a number, or its text where the type of a key is text."""
    if isinstance(value, Number):
        return value.text if _is_text(kind) else value.value
    if isinstance(value, dict):
        return {key: typed(inner, _inside(kind, key, value)) for key, inner in value.items()}
    return [typed(inner, _inside(kind, None, value)) for inner in value] if isinstance(value, list) else value


def _is_text(kind: Any) -> bool:
    """Whether a key of this type takes text, and no number."""
    kinds = get_args(kind) or (kind,)
    return str in kinds and not {int, float} & set(kinds)


def _inside(kind: Any, key: str | None, value: Any) -> Any:
    """The type of what stands in a mapping under a key, or (None) in a list; None where it may be anything."""
    if (model := _model_of(kind, value)) is not None:
        field = model.model_fields.get(str(key))
        return field.annotation if field else None
    arguments = [inner for inner in get_args(kind) if inner not in (type(None), ...)]
    return arguments[-1] if arguments and isinstance(value, list if key is None else dict) else None


def put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key in nested mappings; a bare name on the way becomes `{name: ...}`."""
    *path, last = key.split(".")
    for part in path:
        inner = values.get(part)
        values[part] = dict(inner) if isinstance(inner, Mapping) else {} if inner is None else {"name": inner}
        values = values[part]
    values[last] = value


def with_values(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of nested mappings with dotted keys set."""
    out = copy.deepcopy(dict(values))
    for key, value in changes.items():
        put(out, key, value)
    return out


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _read(path: Path) -> Document:
    """What a file of keys and values holds."""
    if not path.exists():
        near = nearest(path.name, [p.name for p in path.parent.glob("*.y*ml")], 1, 0.6)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise UserError(f"no such file: {path}{hint}")
    found = read_file(path)
    if not isinstance(found.values, dict):
        kind = type(typed(found.values)).__name__
        raise UserError(f"{path} must hold keys and values, got {kind}")
    return found


def _describe(model: type[BaseModel], values: Mapping[str, Any], error: ValidationError, places: Mapping[str, str]) -> str:
    """The first mistake pydantic found, in one line."""
    problem, mistake = error.errors()[0], invalid(error)
    path = [str(part) for part in problem["loc"]]
    message = str(mistake)
    if problem["type"] == "extra_forbidden":
        valid = sorted(_model_at(model, path[:-1], values).model_fields)
        near = nearest(path[-1], valid, 1, 0.6)
        hint = f"did you mean {near[0]!r}? " if near else ""
        message = f"unknown key {'.'.join(path)!r}: {hint}valid: {', '.join(valid)}"
    path = mistake.key.split(".")
    place = next((places[part] for n in range(len(path), -1, -1) if (part := ".".join(path[:n])) in places), None)
    where = f" ({place})" if place else ""
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    return f"{message}{where}{more}"


def _model_at(model: type[BaseModel], path: Iterable[str], values: Any) -> type[BaseModel]:
    """The model that a dotted key leads to; where the way is not through models, the last one on it."""
    for part in path:
        values = values.get(part) if isinstance(values, Mapping) else None
        field = model.model_fields.get(part)
        model = _model_of(field.annotation if field else None, values) or model
    return model


def _model_of(kind: Any, values: Any) -> type[BaseModel] | None:
    """The model that a key's type stands for; of a method, that which the values name."""
    if kind is Extractor:
        name = values.get("name", DEFAULTS["extractor"]) if isinstance(values, Mapping) else str(values)
        return get_extractor(name) if name in extractor_names() else None
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
