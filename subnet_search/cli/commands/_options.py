"""Options that several commands share."""

from typing import Annotated

import typer

Set = Annotated[
    list[str] | None,
    typer.Option(
        "-s", "--set", metavar="KEY=VALUE", help="Set any key of the configuration, for example recipe.epochs=5; VALUE is YAML."
    ),
]
Task = Annotated[
    str | None, typer.Option(metavar="NAME", help="The run's task, if it is one of your own: package.module:Name.")
]
Json = Annotated[bool, typer.Option("--json", help="Print only JSON on standard output.")]
