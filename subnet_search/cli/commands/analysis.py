"""The commands that look closer: pruning plasticity, topologies side by side, accuracy over density."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from subnet_search.cli.commands._options import Json, Set
from subnet_search.cli.render import format
from subnet_search.core.errors import Interrupted, UserError

Numbers = "NUMBER,..."


def plasticity(
    config: Annotated[Path, typer.Argument(help="A run's YAML file; its extractor is not used.")],
    epochs: Annotated[int, typer.Option(min=1, help="Epochs to train on after pruning.")],
    at: Annotated[str, typer.Option(metavar=Numbers, help="Points of the run, as fractions.")] = "0.1,0.3,0.5,0.7,0.9",
    rate: Annotated[str, typer.Option(metavar=Numbers, help="Fractions of all weights to prune.")] = "0.2,0.5,0.8",
    regrow: Annotated[float, typer.Option(help="Fraction of the kept weights to regenerate; 0: none.")] = 0.5,
    set_: Set = None,
    out: Annotated[Path | None, typer.Option(help="Folder [default: runs/plasticity, numbered].")] = None,
    plot: Annotated[bool, typer.Option(help="Also draw plasticity.html into the folder.")] = True,
    json: Json = False,
) -> None:
    """Pruning plasticity: the accuracy that a network wins back.

    After Liu et al. 2021 (arXiv:2106.10404). One dense run is pruned by magnitude at several points and rates,
    without and with regeneration, and trained on. The configuration gives the network, the data and the recipe; of
    the recipe only the keys that it sets count, not those that its extractor would set. With --out, branches that are
    in the folder already are not run again.
    """
    from subnet_search.analysis.plasticity import Plan
    from subnet_search.analysis.plasticity import plasticity as run
    from subnet_search.extraction.config import RunConfig
    from subnet_search.extraction.config_file import read_config
    from subnet_search.extraction.run_folder import free_folder

    plan = Plan(numbers("--at", at), numbers("--rate", rate), epochs, regrow)
    settings = read_config(RunConfig, config, set_ or ())
    folder = out or free_folder("plasticity")
    with _follow(json, f"the same command and --out {folder}") as callbacks:
        records = run(settings, plan, folder, **callbacks)
    if json:
        format.print_json(records)
    else:
        columns = {"at": "at", "step": "step", "rate": "pruned", "regrow": "regrown", "accuracy_before": "before"}
        columns |= {"accuracy_pruned": "after", "accuracy_after": f"+{epochs} epochs", "accuracy_won_back": "won back"}
        format.table(records, {**columns, "accuracy_unpruned": "unpruned", "accuracy_difference": "difference"})
        format.console.print(f"\nValidation accuracy; in {folder}/plasticity.json", markup=False, soft_wrap=True)
    if plot:
        from subnet_search.analysis import plots

        path = folder / "plasticity.html"
        _draw(
            path, lambda: plots.plasticity(records, path, f"Pruning plasticity: {settings.network.name}, {settings.data.name}")
        )


def masks(
    files: Annotated[list[Path], typer.Argument(help="Subnetwork or mask files.")],
    json: Json = False,
) -> None:
    """Topologies side by side: layer densities and overlap.

    Densities by layer, dead outputs, and for each pair of files the overlap (Jaccard index) beside what chance would give.
    """
    from subnet_search.analysis.compare_masks import compare_topologies

    record = compare_topologies(files)
    if json:
        format.print_json(record)
        return
    found, names = record["files"], [str(number) for number in range(1, len(files) + 1)]
    for name, one in zip(names, found, strict=True):
        kept = f"density {one['density']:.4g}, {one['kept']:,} of {one['weights']:,} weights"
        gone = f"; no weight is left in {', '.join(one['collapsed'])}" if one["collapsed"] else ""
        format.pairs({name: f"{one['file']}: {kept}{gone}"})
    format.console.print()
    layers = dict.fromkeys(layer for one in found for layer in one["layer_density"])
    rows = [{"layer": layer, **_layer(layer, found, names)} for layer in layers]
    dead = {f"dead {name}": f"dead outputs {name}" for name in names if any(row[f"dead {name}"] for row in rows)}
    format.table(rows, {"layer": "layer", "weights": "weights", **{f"density {n}": f"density {n}" for n in names}, **dead})
    if record["overlaps"]:
        format.console.print(
            "\nOverlap: weights in both over weights in either, and what chance gives at these layer densities"
        )
        pairs = [f"{a} and {b}" for a, b in itertools.combinations(names, 2)]
        rows = [{"pair": pair, **one} for pair, one in zip(pairs, record["overlaps"], strict=True)]
        format.table(rows, {"pair": "pair", "overlap": "overlap", "chance": "by chance"})


def _layer(layer: str, found: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """A layer's row: its weights, and for every file that has it the density and the number of dead outputs."""
    row: dict[str, Any] = {"weights": next(one["layer_weights"][layer] for one in found if layer in one["layer_weights"])}
    for name, one in zip(names, found, strict=True):
        row[f"density {name}"] = one["layer_density"].get(layer)
        row[f"dead {name}"] = one["dead_outputs"].get(layer)
    return row


def accuracy_curve(rows: Sequence[dict[str, Any]], folder: Path, title: str, quiet: bool) -> None:
    """The table of a run's densities, and curve.html beside its curve.json."""
    if not quiet:
        format.console.print()
        columns = {"density": "density", "val_accuracy": "validation", "test_accuracy": "test", "kept": "weights"}
        format.table(rows, {**columns, "bytes": "size", "subnetwork": "file"}, title="One training, several densities")
        for row in rows:
            if row["collapsed"]:
                text = f"density {row['asked']:g}: no weight is left in {', '.join(row['collapsed'])}"
                format.console.print(text, markup=False, soft_wrap=True)
    from subnet_search.analysis import plots

    points = [
        {"label": label, "density": row["density"], **dict.fromkeys(("mean", "low", "high"), row[key])}
        for label, key in (("validation", "val_accuracy"), ("test", "test_accuracy"))
        for row in rows
        if row[key] is not None
    ]
    path = folder / "curve.html"
    _draw(path, lambda: plots.accuracy_density(points, path, title))


def numbers(option: str, text: str | None) -> tuple[float, ...]:
    """The numbers of an option, which commas separate."""
    try:
        return tuple(float(part) for part in text.split(",")) if text else ()
    except ValueError as error:
        raise UserError(f"{option} takes numbers separated by commas, got {text!r}") from error


def _draw(path: Path, plot: Callable[[], None]) -> None:
    """Draw, and say where; without plotly, say what is missing. On standard error: results are elsewhere."""
    try:
        plot()
        format.errors.print(f"plot: {path}", markup=False, soft_wrap=True)
    except UserError as error:
        format.errors.print(f"no plot: {error}", markup=False, soft_wrap=True)


@contextmanager
def _follow(quiet: bool, go_on: str) -> Iterator[dict[str, Any]]:
    """Callbacks for `plasticity.plasticity`: a bar on a terminal, a line for every branch, and stopping on Ctrl-C."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    from subnet_search.cli.render.signals import stop_on_signal

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps"))
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    live = format.errors.is_terminal and not quiet
    bar = Progress(*columns, *times, console=format.errors, transient=True, disable=not live)
    task = bar.add_task("the dense run", total=None)

    def on_branch(record: dict[str, Any]) -> None:
        grown = ", regrown" if record["regrow"] else ""
        three = " -> ".join(format.percent(record[f"accuracy_{when}"]) for when in ("before", "pruned", "after"))
        text = f"at {record['at']:g}, {100 * record['rate']:.4g} % pruned{grown}: {three}"
        bar.update(task, description=text)
        if not quiet:
            format.errors.print(text, markup=False, soft_wrap=True)

    try:
        with stop_on_signal() as should_stop, bar:
            on_step = lambda done, total: bar.update(task, completed=done, total=total)  # noqa: E731
            yield {"on_step": on_step, "on_branch": on_branch, "should_stop": should_stop}
    except Interrupted as stop:
        raise Interrupted(f"{stop}; go on with {go_on}") from stop
