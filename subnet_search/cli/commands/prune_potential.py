"""The command `prune-potential`."""

from pathlib import Path
from typing import Annotated

import typer

from subnet_search.cli.commands._options import CorruptionsFrom, Json, Network
from subnet_search.cli.render import evaluation_page, format
from subnet_search.core.errors import UserError


def prune_potential(
    files: Annotated[
        list[Path], typer.Argument(help="Subnetworks of one network at several densities: files, or folders of a run.")
    ],
    against: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="The dense network: a file, or dense: the trained weights that the run started from.",
        ),
    ] = "dense",
    split: Annotated[str, typer.Option(help="Split to measure on: val or test.")] = "test",
    delta: Annotated[float, typer.Option(help="How much the error may rise, in percentage points.")] = 0.5,
    noise: Annotated[bool, typer.Option("--noise", help="Also for images with uniform noise.")] = False,
    corruptions: Annotated[bool, typer.Option("--corruptions", help="Also for corrupted images.")] = False,
    corruptions_from: CorruptionsFrom = None,
    severity: Annotated[int, typer.Option(help="Severity of the corruptions, 1 to 5.")] = 3,
    data: Annotated[str | None, typer.Option(help="Another data set than the run's: a name, npz:FILE, ...")] = None,
    network: Network = None,
    json: Json = False,
) -> None:
    """Find how much of a network can be pruned before its error rises.

    Prints the largest fraction of pruned weights, among the given subnetworks, whose error is at most the dense network's plus
    0.5 percentage points, for clean, noisy and corrupted images (Liebenwein et al. 2021, arXiv:2103.03014). `extract
    --densities` writes subnetworks at several densities from one training.
    """
    if split not in ("val", "test"):
        raise UserError(f"--split must be val or test, got {split!r}")
    from subnet_search.extraction.prune_potential import prune_potential as measured

    record = measured(
        files,
        against,
        "test" if split == "test" else "val",
        delta=delta / 100,
        noise=noise,
        corruptions=corruptions_from or corruptions,
        severity=severity,
        network=network,
        data=data,
    )
    format.report(record, json, evaluation_page.potential)
