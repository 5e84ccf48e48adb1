"""The commands `compare` and `sanity`."""

import importlib.util
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from subnet_search.analysis.plots import check_path
from subnet_search.cli.commands._options import DryRun, Json, Set, numbers
from subnet_search.cli.render import format, plan_page
from subnet_search.core.errors import UserError
from subnet_search.core.task_metrics import CLASSIFICATION, in_words, is_fraction, leading_in

if TYPE_CHECKING:
    from subnet_search.search.studies.method_grid import Grid

Config = Annotated[Path, typer.Argument(help="YAML file of a run.")]
Seeds = Annotated[int, typer.Option(min=1, help="Runs per row, with consecutive seeds from the configuration's seed.")]
Workers = Annotated[int, typer.Option(min=1, help="Worker processes on this machine.")]
Storage = Annotated[
    str | None,
    typer.Option(help="Optuna storage URL [default: sqlite:///runs/studies.db].", envvar="SUBNET_SEARCH_STORAGE"),
]

COLUMNS = {
    "method": "method",
    "density": "density",
    "cells": "runs",
    "validation": "validation",
    "test": "test",
    "achieved_density": "weights kept",
    "steps": "steps",
    "passes": "passes",
    "seconds": "time",
}


def compare(
    config: Config,
    extractors: Annotated[str, typer.Option(metavar="NAME,NAME,...", help="Methods to compare.")],
    densities: Annotated[str, typer.Option(metavar="NUMBER,...", help="Fractions of weights to keep.")],
    seeds: Seeds = 3,
    workers: Workers = 1,
    storage: Storage = None,
    name: Annotated[str | None, typer.Option(help="The study's name [default: compare-CONFIG].")] = None,
    set_: Set = None,
    json: Json = False,
    plot: Annotated[
        Path | None,
        typer.Option(
            help="File of the plot (.html, .svg, .pdf, .png) or its numbers (.csv, .tex) [default: runs/compare/NAME.html]."
        ),
    ] = None,
    recipe: Annotated[
        Literal["shared", "published"],
        typer.Option(help="Recipe keys that CONFIG does not set: shared defaults, or each method's published settings."),
    ] = "shared",
    dry_run: DryRun = False,
) -> None:
    """Compare methods over densities and seeds.

    Runs every method at every density with every seed, and the dense network, on the same network and data with the same
    epochs and batch size. Methods that train weights share one recipe with the dense network: the keys that CONFIG sets,
    and otherwise SGD with learning rate 0.1, momentum 0.9, cosine schedule and weight decay 5e-4. Masks that are learned
    use the published learning rate and weight decay of their method. With --recipe published, keys that CONFIG does not
    set have each method's published settings (`subnet-search methods NAME`). The line under the table shows the recipe.
    The extractor section of CONFIG applies to its own method; the others have their default hyperparameters.

    Finished runs are never repeated: the same command with more methods, densities or seeds runs only the new ones, and
    continues after an interruption. Failed runs do not stop the others and are retried by the next call.
    """
    from subnet_search.extraction.config import RunConfig
    from subnet_search.extraction.config_file import read_config
    from subnet_search.search.storage.study_folder import file_name
    from subnet_search.search.studies.check_grid import check_grid
    from subnet_search.search.studies.method_grid import method_grid

    wanted = numbers("--densities", ",".join(_words("--densities", densities)))
    if plot:
        check_path(plot)
    name = name or f"compare-{config.stem}"
    settings = read_config(RunConfig, config, set_ or ())
    grid = method_grid(name, settings, _words("--extractors", extractors), wanted, seeds, recipe)
    check_grid(grid)
    if dry_run:
        format.report(_plan(grid), json, plan_page.comparison)
        return
    record = _run_grid(grid, storage, workers, quiet=json)
    if not json:
        _table(record, seeds)
    record["plot"] = _plot(record, plot or Path("runs/compare") / f"{file_name(name)}.html")
    if json:
        format.print_json(record)
        return
    hint = (
        f"plot: {record['plot']}" if record["plot"] else "no plot: plotly is not installed (pip install 'subnet-search[plots]')"
    )
    format.say(f"\n{hint}")


def sanity(
    config: Config,
    seeds: Seeds = 3,
    workers: Workers = 1,
    storage: Storage = None,
    name: Annotated[str | None, typer.Option(help="The study's name [default: sanity-CONFIG].")] = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Test whether it matters which weights a method keeps.

    The sanity checks of Frankle et al. 2021 (arXiv:2009.08576) for a method that prunes before training. Rows: the method
    (original), its mask shuffled within each layer (shuffled), its mask with new initial weights (redrawn), the weights
    with the lowest scores kept (inverted, if the method supports it), a random mask, and the dense network. All use the
    keys that CONFIG sets and otherwise the method's published settings. If shuffled is as accurate as original, the method
    only found a density for each layer. As with compare, finished runs are never repeated.
    """
    from subnet_search.extraction.config import RunConfig
    from subnet_search.extraction.config_file import read_config
    from subnet_search.search.studies.check_grid import check_grid
    from subnet_search.search.studies.method_grid import sanity_grid

    grid = sanity_grid(name or f"sanity-{config.stem}", read_config(RunConfig, config, set_ or ()), seeds)
    check_grid(grid)
    record = _run_grid(grid, storage, workers, quiet=json)
    format.report(record, json, _table, seeds)


def _plan(grid: "Grid") -> dict[str, Any]:
    """The runs of a grid, and what its first run would do."""
    from subnet_search.extraction.dry_run import dry_run

    runs = Counter((cell.row.method, cell.row.density) for cell in grid.cells)
    rows = [{"method": method, "density": density, "runs": count} for (method, density), count in runs.items()]
    first = dry_run(grid.spec.config(grid.cells[0].attribute["values"]))
    return {"rows": rows, "runs": len(grid.cells), "recipe": grid.recipe_text(), "run": first}


def _run_grid(grid: "Grid", storage: str | None, workers: int, quiet: bool) -> dict[str, Any]:
    """Run the cells that have not been run. Raises RunError if no cell is complete afterwards."""
    from subnet_search.cli.render.signals import stop_on_signal
    from subnet_search.search.studies.comparison import comparison_record
    from subnet_search.search.studies.method_grid import prepare_grid, run_grid

    url = storage or grid.spec.storage
    prepare_grid(grid, url)  # before signals are caught
    with stop_on_signal("continue with the same command") as should_stop:
        cells = run_grid(grid, url, workers, should_stop, progress=not quiet)
    return comparison_record(grid, cells)


def _table(record: dict[str, Any], seeds: int) -> None:
    leading = leading_in(record["rows"][0])
    rows = [
        {
            "method": row["method"],
            "density": row["density"],
            "cells": f"{row['complete']}/{row['cells']}",
            "validation": _spread(row[f"val_{leading}"], leading),
            "test": _spread(row[f"test_{leading}"], leading),
            "achieved_density": row["achieved_density"] and row["achieved_density"]["mean"],
            "steps": _mean(row["steps"]),
            "passes": f"{_mean(row['forward'])} + {_mean(row['backward'])}",
            "seconds": row["seconds"] and row["seconds"]["mean"],
        }
        for row in record["rows"]
    ]
    name = "" if leading == CLASSIFICATION.leading else f" {in_words(leading)}"
    heads = {split: f"{split}{name}{' %' if is_fraction(leading) else ''}" for split in ("validation", "test")}
    format.table(rows, COLUMNS | heads, repeat=2)
    words = "Mean over seeds (lowest-highest). " if seeds > 1 else ""
    format.console.print(f"\n{words}Passes: forward + backward passes, in batches.")
    format.say(record["recipe"]["text"])
    for line in (record["unequal"], record["too_short"]):
        if line:
            format.say(line)
    missing = [cell for cell in record["cells"] if cell["state"] != "COMPLETE"]
    if missing:
        format.console.print("\nMissing runs (the same command runs them again):")
    for cell in missing:
        why = cell["reason"] if cell["state"] == "FAIL" else "running in another process" if cell["state"] else "not started"
        where = f"{cell['method']} at {cell['density']:g}, seed {cell['seed']}"
        format.say(f"  {where}: {why or 'interrupted'}")


def _spread(values: dict[str, float] | None, metric: str) -> str:
    if values is None:
        return "-"
    ends = (values[key] for key in ("mean", "low", "high"))
    mean, low, high = (f"{100 * value:.2f}" if is_fraction(metric) else f"{value:.4g}" for value in ends)
    return mean if values["deviation"] is None else f"{mean} ({low}-{high})"


def _mean(values: dict[str, float] | None) -> str:
    return "-" if values is None else format.cell("", round(values["mean"]))


def _plot(record: dict[str, Any], path: Path) -> str | None:
    """Plot the leading metric; None without plotly."""
    if importlib.util.find_spec("plotly") is None:
        return None
    from subnet_search.search.queries.figures import plot_comparison

    plot_comparison(record, path)
    return str(path)


def _words(option: str, text: str) -> list[str]:
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not words:
        raise UserError(f"{option} is empty: give one or more names, separated by commas")
    return words
