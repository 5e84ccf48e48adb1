"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from subnet_search.core.errors import UserError

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
Latency = Annotated[
    bool,
    typer.Option(
        "--latency/--no-latency",
        help="Measure the time of a forward pass of the exported and the dense network (some seconds for each of three batch "
        "sizes).",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="Print the complete configuration, the network's layers, the density in weights and the memory needed; train "
        "and write nothing.",
    ),
]
Network = Annotated[str | None, typer.Option(help="package.module:factory, if the run's network was your own module.")]
CorruptionsFrom = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Also measure accuracy on the corrupted images of CIFAR-10-C or a data set like it: labels.npy and KIND.npy.",
    ),
]


def numbers(option: str, text: str | None) -> tuple[float, ...]:
    """Parse the comma-separated numbers of an option."""
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise UserError(f"{option} takes numbers separated by commas, got {text!r}") from error
