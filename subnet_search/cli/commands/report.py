"""The command `report`."""

from pathlib import Path
from typing import Annotated

import typer

from subnet_search.cli.render import format


def report(
    what: Annotated[str, typer.Argument(metavar="RUN|STUDY", help="A run folder, a subnetwork file, or the name of a study.")],
    other: Annotated[str | None, typer.Argument(metavar="RUN|STUDY", help="Another one, to be shown beside it.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="The page [default: report.html in the run's folder, or in runs/reports].")
    ] = None,
    storage: Annotated[
        str | None,
        typer.Option(help="Optuna storage URL [default: sqlite:///runs/studies.db].", envvar="SUBNET_SEARCH_STORAGE"),
    ] = None,
    evaluate: Annotated[
        bool, typer.Option("--evaluate", help="Also measure calibration and accuracy under noise of runs.")
    ] = False,
) -> None:
    """Write an HTML page about a run or a study, or two side by side.

    The page needs no network, and can be printed. `evaluate --save` adds calibration, robustness and times to that of a run.
    """
    from subnet_search.reports.report import report as write

    format.note(f"report: {write(what, other, out=out, storage=storage, evaluate=evaluate)}")
