"""Base class of all settings models: frozen, without unknown keys, and with limits on numbers."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from subnet_search.core.attribute_docs import attribute_docs
from subnet_search.core.errors import UnknownKey, UserError, invalid, shown

LARGEST = 3.4e38  # largest float32


if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class _OneLineErrors(ModelMetaclass):
    """Calls of a class, as `Recipe(epochs=3)` in Python, raise UserError in one line.

    Validation of values from a file does not call the class, so its errors keep their paths.
    """

    if not TYPE_CHECKING:  # type checkers read the fields

        def __call__(cls, /, *args: Any, **values: Any) -> Any:
            try:
                return super().__call__(*args, **values)
            except ValidationError as error:
                raise invalid(error) from None


class Settings(BaseModel, metaclass=_OneLineErrors):
    """Base of all models that are read from a configuration."""

    other_kind: ClassVar[tuple[frozenset[str], str]] = (frozenset(), "")
    """Top-level keys of another kind of file, and what it is: for the error when it is given in place of this one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def helps(cls) -> dict[str, str]:
        """The description of each field in one line: that of its `Field`, or the docstring below it."""
        docs = attribute_docs(cls)
        texts = {name: field.description or docs.get(name, "") for name, field in cls.model_fields.items()}
        return {name: " ".join(text.split()) for name, text in texts.items() if text}

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The JSON schema of these settings, with the descriptions of their keys."""
        made = handler(schema)
        keys, texts = handler.resolve_ref_schema(made).get("properties", {}), attribute_docs(cls)
        for name, field in cls.model_fields.items():
            if name in texts and (key := keys.get(field.alias or name)) is not None:
                key.setdefault("description", texts[name])
        return made

    @model_validator(mode="wrap")
    @classmethod
    def _numbers(cls, values: Any, made: ModelWrapValidatorHandler[Self]) -> Self:
        """Check all numbers, also in nested values of any type. Floats are checked after validation: field errors first."""
        _check(values, "", whole=True)
        try:
            settings = made(values)
        except ValidationError as error:
            problem = error.errors()[0]
            if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
                raise UnknownKey(str(problem["loc"][0]), cls.model_fields, error.error_count() - 1) from None
            raise
        _check(values, "", whole=False)
        return settings


def _check(value: Any, key: str, whole: bool) -> None:
    """Raise UserError for an integer (`whole`) or a float (not `whole`) that is out of range."""
    match value:
        case bool():
            return
        case int() if whole and not -(2**63) <= value < 2**64:
            raise UserError(f"{key}: a whole number has 64 bits at most, got {shown(value)}", key)
        case float() if not whole and not abs(value) <= LARGEST:
            raise UserError(f"{key}: input should be a finite number of at most {LARGEST:g}, got {value}", key)
        case Mapping():
            for name, inner in value.items():
                _check(inner, f"{key}.{name}" if key else str(name), whole)
        case list() | tuple():
            for place, inner in enumerate(value):
                _check(inner, f"{key}.{place}" if key else str(place), whole)
