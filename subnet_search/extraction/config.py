"""The configuration of a run."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Gt, Le
from pydantic import (
    BeforeValidator,
    Field,
    SerializeAsAny,
    ValidationInfo,
    WrapSerializer,
    field_validator,
    model_validator,
)
from pydantic import SerializerFunctionWrapHandler as Serialize

from subnet_search.core.errors import UserError
from subnet_search.core.settings import Settings
from subnet_search.data import DataSpec
from subnet_search.extraction.config_file import DEFAULTS
from subnet_search.extractors import Extractor, create
from subnet_search.extractors.base import trains_weights
from subnet_search.nets import NetworkSpec, file_sha256
from subnet_search.tasks import Classification, Task, create_task
from subnet_search.topology.units import parse
from subnet_search.training import Recipe


def _with_name(extractor: Extractor, dump: Serialize) -> dict[str, Any]:
    return {"name": extractor.name, **dump(extractor)}


AnyExtractor = Annotated[SerializeAsAny[Extractor], BeforeValidator(create), WrapSerializer(_with_name)]


AnyTask = Annotated[SerializeAsAny[Task], BeforeValidator(create_task)]


FINE_TUNING_RATE = 0.01
"""Learning rate for trained weights, unless it is set or the method has a published one; Recipe's default destroys them."""
DEFAULT_UNITS = {"weight": "weight", "channel": "channel", "n:m": "2:4", "block": "block:4"}


def _unnamed(value: Any) -> bool:
    return isinstance(value, Mapping) and "name" not in value


class RunConfig(Settings):
    """Everything that determines the result of a run. Every key has a default."""

    other_kind = (frozenset({"run", "space"}), "a study, not one run: start it with subnet-search study run")

    network: NetworkSpec = NetworkSpec(name=DEFAULTS["network"])
    """The network to prune."""
    data: DataSpec = DataSpec(name=DEFAULTS["data"])
    """The data to train and evaluate on."""
    task: AnyTask = Classification()
    """What the network is trained for."""
    extractor: AnyExtractor = Field(default_factory=lambda: create(DEFAULTS["extractor"]))
    """The method, and its hyperparameters."""
    unit: str = "weight"
    """What is pruned together: weight, channel, n:m (2:4), or block:size (block:16). Default: the method's first unit."""
    round_to: int | None = Field(default=None, ge=1)
    """Keep channels in multiples of this. Default: 16, and less in groups of fewer than 64."""
    target: dict[Literal["units", "parameters", "flops"], Annotated[float, Gt(0), Le(1)]] | None = Field(
        default=None, min_length=1, max_length=1
    )
    """The density, as a fraction of units, parameters or FLOPs: {flops: 0.5}. Default: the extractor's, of units."""
    dense_layers: list[str] = []
    """Layers that are not pruned and that `density` does not count, as names or patterns: [fc, "*.downsample.*"]."""
    recipe: Recipe = Recipe()
    """How the network is trained."""
    seed: int = Field(default=0, ge=0)
    """Seed of the initial weights, all draws and the order of images; data.split_seed is that of the validation split."""
    weights: Literal["values", "seed"] = "values"
    """What the subnetwork file stores: the values of kept weights, or only the seed that generates them."""

    @model_validator(mode="before")
    @classmethod
    def _default_names(cls, values: Any) -> Any:
        """Fill in the default name in a section without one, as in `extractor: {density: 0.3}`."""
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
            raise UserError(f"needs unit: channel, got unit: {unit}")
        return round_to

    @field_validator("target")
    @classmethod
    def _one_density(cls, target: dict[str, float] | None, info: ValidationInfo) -> dict[str, float] | None:
        extractor = info.data.get("extractor")
        if target is None or extractor is None:
            return target
        if not extractor.has_density():
            raise UserError(f"{extractor.name} has no density, so it does not support a target")
        if "density" in extractor.model_fields_set and extractor.density not in target.values():
            raise UserError("extractor.density and target both set the density: remove one of them")
        return target

    @model_validator(mode="after")
    def _fill_in(self) -> "RunConfig":
        if "unit" not in self.model_fields_set:
            object.__setattr__(self, "unit", DEFAULT_UNITS[self.extractor.paradigm.units[0]])
            self.__pydantic_fields_set__.discard("unit")
        kind, numbers = parse(self.unit)
        default = None if "density" in self.extractor.model_fields_set else self.extractor.target_density
        if kind == "n:m" and default is not None and self.target is None:  # n of every m, not the default of single weights
            object.__setattr__(self, "extractor", self.extractor.with_values(density=numbers[0] / numbers[1]))
        if self.target is not None:
            [density] = self.target.values()
            # Validate again: the density must be consistent with the other hyperparameters.
            object.__setattr__(self, "extractor", self.extractor.with_values(density=density))
        return self

    def resolve(self) -> "RunConfig":
        """A copy with all defaults filled in, including this machine's device and threads."""
        network = self.network.resolve(self.extractor.target_density, self.task.name)
        published = self.extractor.published.recipe
        if network.pretrained and trains_weights(type(self.extractor)):
            published = {"lr": FINE_TUNING_RATE, **published}
        recipe = self.recipe.resolve(published)
        if (distill := recipe.distill) and distill.teacher:
            found = file_sha256(distill.teacher, "recipe.distill.teacher", distill.teacher_sha256)
            recipe = recipe.model_copy(update={"distill": distill.model_copy(update={"teacher_sha256": found})})
        fixed = self.extractor.trained_defaults if network.pretrained else {}
        more = {key: value for key, value in fixed.items() if key not in self.extractor.model_fields_set}
        extractor = self.extractor.with_values(**more) if more else self.extractor
        return self.model_copy(update={"network": network, "recipe": recipe, "extractor": extractor})

    def dump(self) -> dict[str, Any]:
        """All values as plain types, for YAML and JSON."""
        return self.model_dump(mode="json")

    def given(self) -> dict[str, Any]:
        """Only the values that were set, as plain types; defaults can still change by an override."""
        return self.model_dump(mode="json", exclude_unset=True)
