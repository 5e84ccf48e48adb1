"""Options that several commands share."""

from typing import Annotated

import typer

Set = Annotated[list[str] | None, typer.Option("-s", "--set", metavar="KEY=VALUE", help="Override any key; VALUE is YAML.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]
