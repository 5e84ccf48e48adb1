"""A JSON schema of a study's specification, for editors and other validators."""

from typing import Any

from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.schema import run_schema
from subnet_search.search.spec.sampler_options import PRUNERS, SAMPLERS
from subnet_search.search.spec.space_parser import LAYERS
from subnet_search.search.spec.study_spec import StudySpec


def study_schema() -> dict[str, Any]:
    """A JSON schema that refuses unknown keys, also in `run`; keys of the space must begin with a key of a run."""
    schema, run = StudySpec.model_json_schema(), run_schema()
    keys, definitions = schema["properties"], run.pop("$defs")
    dialect = run.pop("$schema")
    keys["run"] = {"description": keys["run"].get("description", ""), **run}
    keys["objective"] = {**keys["objective"], "type": ["string", "array"]}
    keys["constraints"]["additionalProperties"] = {"type": ["string", "number"]}
    for key, names in (("sampler", SAMPLERS), ("pruner", PRUNERS)):
        name = {"enum": list(names)}
        given = {"type": "object", "properties": {"name": name}, "required": ["name"]}
        keys[key] = {"description": keys[key].get("description", ""), "anyOf": [name, given, {"type": "null"}]}
    first = "|".join([*RunConfig.model_fields, LAYERS])
    keys["space"]["propertyNames"] = {"pattern": rf"^({first})(\..+)?$"}
    return {"$schema": dialect, **schema, "$defs": definitions}
