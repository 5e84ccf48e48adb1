"""The command `config`."""

from typing import Annotated

import typer

from subnet_search.cli.commands._options import Json
from subnet_search.cli.render import format


def config(
    section: Annotated[str | None, typer.Argument(help="Section to list, such as recipe [default: all].")] = None,
    study: Annotated[bool, typer.Option("--study", help="The keys of a study in place of those of a run.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print a JSON schema, for editors and validators.")] = False,
    json: Json = False,
) -> None:
    """List the keys of a configuration, with type, default and meaning.

    For completion and checks in an editor with the YAML language server, write the schema to a file, and as the first line
    of a configuration: # yaml-language-server: $schema=run.schema.json
    """
    from subnet_search.extraction.config import RunConfig
    from subnet_search.extraction.schema import run_schema, sections
    from subnet_search.extraction.schema import section as one

    if schema:
        from subnet_search.search.spec.study_schema import study_schema

        format.print_json(study_schema() if study else run_schema())
        return
    if study:
        from subnet_search.search import StudySpec

        found = sections(StudySpec, "study")
        found["run"] = [
            {"key": "run", "type": "mapping", "default": "{}", "meaning": "The keys that subnet-search config lists."}
        ]
    else:
        found = sections(RunConfig, "run")
    found = one(found, section) if section else found
    if json:
        format.print_json(found)
        return
    for name, rows in found.items():
        format.console.print(f"[bold]{name}[/bold]")
        format.table(rows, {"key": "key", "type": "type", "default": "default", "meaning": ""})
        format.console.print()
