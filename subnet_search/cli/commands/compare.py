"""The commands that compare: methods side by side, and a method with its controls."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from subnet_search.analysis.plots import check_path
from subnet_search.cli.commands._options import Json, Set
from subnet_search.cli.render import format
from subnet_search.core.errors import Interrupted, RunError, UserError

if TYPE_CHECKING:
    from subnet_search.search.studies.method_grid import Grid

Config = Annotated[Path, typer.Argument(help="A run's YAML file.")]
Seeds = Annotated[int, typer.Option(min=1, help="Runs of each line, with the configuration's seed and those after it.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes on this machine.")]
Storage = Annotated[
    str | None,
    typer.Option(help="Any Optuna storage URL [default: sqlite:///runs/studies.db].", envvar="SUBNET_SEARCH_STORAGE"),
]

COLUMNS = {
    "label": "method",
    "density": "density",
    "cells": "runs",
    "validation": "validation %",
    "test": "test %",
    "achieved_density": "weights kept",
    "steps": "steps",
    "passes": "passes",
    "seconds": "time",
}


def compare(
    config: Config,
    extractors: Annotated[str, typer.Option(metavar="NAME,NAME,...", help="Methods, separated by commas.")],
    densities: Annotated[str, typer.Option(metavar="NUMBER,...", help="Fractions kept, separated by commas.")],
    seeds: Seeds = 3,
    workers: Workers = 1,
    storage: Storage = None,
    name: Annotated[str | None, typer.Option(help="The study's name [default: compare-CONFIG].")] = None,
    set_: Set = None,
    json: Json = False,
    plot: Annotated[Path | None, typer.Option(help="Where the plot goes [default: runs/compare/NAME.html].")] = None,
    recipe: Annotated[
        Literal["shared", "published"],
        typer.Option(help="What the configuration's recipe leaves open: the same for all, or each method's published setting."),
    ] = "shared",
) -> None:
    """Methods side by side, over densities and seeds.

    Every method at every density with every seed, and the dense network: the same network and data for the same
    number of steps. All methods that train weights share one recipe, and the dense network has it too: what the
    configuration sets, and for the rest sgd at 0.1 with momentum 0.9, a cosine and weight decay 5e-4. Methods that learn
    masks alone have their published rate and decay, as has relevance that is learned beside weights. With --recipe
    published what the configuration leaves open is each method's published setting (`subnet-search methods NAME`), and
    differences include the recipe; the line under the table says which it is. Epochs and batch size are the same for all.
    The configuration's extractor section counts for that method alone; the others have their published defaults.

    Nothing is ever run twice: called again with more methods, densities or seeds, it runs only what is new; stopped,
    it goes on where it was. What has failed is tried again by the next call, and does not stop the rest.
    """
    from subnet_search.extraction.config import RunConfig
    from subnet_search.extraction.config_file import read_config
    from subnet_search.search.storage.study_folder import file_name
    from subnet_search.search.studies.method_grid import method_grid

    wanted = [_number(text) for text in _words("--densities", densities)]
    if plot:
        check_path(plot)
    name = name or f"compare-{config.stem}"
    settings = read_config(RunConfig, config, set_ or ())
    grid = method_grid(name, settings, _words("--extractors", extractors), wanted, seeds, recipe)
    record = _run_grid(grid, storage, workers, quiet=json)
    if not json:
        _table(record, seeds)
    record["plot"] = _plot(record, plot or Path("runs/compare") / f"{file_name(name)}.html")
    if json:
        format.print_json(record)
        return
    hint = f"plot: {record['plot']}" if record["plot"] else "no plot: that needs plotly (pip install 'subnet-search[plots]')"
    format.console.print(f"\n{hint}", markup=False, soft_wrap=True)


def sanity(
    config: Config,
    seeds: Seeds = 3,
    workers: Workers = 1,
    storage: Storage = None,
    name: Annotated[str | None, typer.Option(help="The study's name [default: sanity-CONFIG].")] = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Does it matter which weights a method keeps?

    The sanity checks of Frankle et al. 2021 (arXiv:2009.08576), for a method that finds its topology before training:
    as it is (original), with the topology shuffled within every layer, with new weights (redrawn), keeping what it
    would drop (inverted, where the method can), a random topology and the dense network, all with the method's recipe:
    what the configuration sets, and for the rest what was published for the method.
    Where shuffled is as good as original, the method found no more than a density for each layer. As with compare,
    nothing is ever run twice.
    """
    from subnet_search.extraction.config import RunConfig
    from subnet_search.extraction.config_file import read_config
    from subnet_search.search.studies.method_grid import sanity_grid

    grid = sanity_grid(name or f"sanity-{config.stem}", read_config(RunConfig, config, set_ or ()), seeds)
    record = _run_grid(grid, storage, workers, quiet=json)
    if json:
        format.print_json(record)
    else:
        _table(record, seeds)


def _run_grid(grid: "Grid", storage: str | None, workers: int, quiet: bool) -> dict[str, Any]:
    """Run the cells that are still to be run. Raises RunError when not one cell of the grid is complete then."""
    from subnet_search.cli.render.progress import study_progress
    from subnet_search.cli.render.signals import stop_on_signal
    from subnet_search.search.queries.queries import trial_rows
    from subnet_search.search.spec.study_spec import spec_of
    from subnet_search.search.studies.method_grid import prepare_grid, run_grid, table_rows

    url = storage or grid.spec.storage
    study = prepare_grid(grid, url)
    try:
        with stop_on_signal() as should_stop, study_progress(lambda: trial_rows(study), spec_of(study).trials, quiet):
            cells = run_grid(grid, url, workers, should_stop)
    except Interrupted as stop:
        raise Interrupted(f"{stop}; go on with the same command") from stop
    if not any(cell["state"] == "COMPLETE" for cell in cells):
        raise RunError(f"all {len(cells)} runs failed, the first because: {cells[0]['reason']}")
    return {"name": grid.spec.name, "recipe": grid.recipe_record(), "rows": table_rows(cells), "cells": cells}


def _table(record: dict[str, Any], seeds: int) -> None:
    rows = [
        {
            "label": row["label"],
            "density": row["density"],
            "cells": f"{row['complete']}/{row['cells']}",
            "validation": _spread(row["val_accuracy"]),
            "test": _spread(row["test_accuracy"]),
            "achieved_density": row["achieved_density"] and row["achieved_density"]["mean"],
            "steps": _mean(row["steps"]),
            "passes": f"{_mean(row['forward'])} + {_mean(row['backward'])}",
            "seconds": row["seconds"] and row["seconds"]["mean"],
        }
        for row in record["rows"]
    ]
    format.table(rows, COLUMNS)
    words = "Means over runs, in brackets the lowest and the highest. " if seeds > 1 else ""
    format.console.print(f"\n{words}Passes: batches forward + backward.")
    format.console.print(record["recipe"]["text"], markup=False, soft_wrap=True)
    missing = [cell for cell in record["cells"] if cell["state"] != "COMPLETE"]
    if missing:
        format.console.print("\nMissing (called again, failed runs are tried again):")
    for cell in missing:
        why = cell["reason"] if cell["state"] == "FAIL" else "under way elsewhere" if cell["state"] else "not begun"
        where = f"{cell['arm']} at {cell['density']:g}, seed {cell['seed']}"
        format.console.print(f"  {where}: {why or 'broken off'}", markup=False, soft_wrap=True)


def _spread(values: dict[str, float] | None) -> str:
    if values is None:
        return "-"
    mean, low, high = (f"{100 * values[key]:.2f}" for key in ("mean", "low", "high"))
    return mean if values["deviation"] is None else f"{mean} ({low}-{high})"


def _mean(values: dict[str, float] | None) -> str:
    return "-" if values is None else format.cell("", round(values["mean"]))


def _plot(record: dict[str, Any], path: Path) -> str | None:
    """Draw test accuracy, or validation accuracy where the data has no test split; None without plotly."""
    if not _has_plotly():
        return None
    from subnet_search.analysis.plots import accuracy_density
    from subnet_search.search.studies.method_grid import plot_points

    tested = any(row["test_accuracy"] for row in record["rows"])
    points = plot_points(record["rows"], "test_accuracy" if tested else "val_accuracy")
    dense = next((point["mean"] for point in points if point["label"] == "dense"), None)
    title = f"{record['name']}: {'test' if tested else 'validation'} accuracy"
    accuracy_density([point for point in points if point["label"] != "dense"], path, title, dense)
    return str(path)


def _has_plotly() -> bool:
    from importlib.util import find_spec

    return find_spec("plotly") is not None


def _words(option: str, text: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UserError(f"{option} names nothing: give at least one, more separated by commas")
    return words


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UserError(f"--densities takes numbers separated by commas, got {text!r}") from error
