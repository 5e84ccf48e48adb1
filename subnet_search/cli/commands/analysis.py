"""The commands `plasticity` and `masks`, and the table of `extract --densities`."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from subnet_search.cli.commands._options import Json, Set, numbers
from subnet_search.cli.render import format
from subnet_search.core.errors import UserError
from subnet_search.core.task_metrics import CLASSIFICATION, in_words, leading_in

Numbers = "NUMBER,..."


def plasticity(
    config: Annotated[Path, typer.Argument(help="YAML file of a run; its extractor is not used.")],
    epochs: Annotated[int, typer.Option(min=1, help="Epochs of training after pruning.")],
    at: Annotated[
        str, typer.Option(metavar=Numbers, help="Times of pruning, as fractions of the run.")
    ] = "0.1,0.3,0.5,0.7,0.9",
    rate: Annotated[str, typer.Option(metavar=Numbers, help="Fractions of all weights to prune.")] = "0.2,0.5,0.8",
    regrow: Annotated[float, typer.Option(help="Weights to regrow, as a fraction of the kept weights; 0: none.")] = 0.5,
    set_: Set = None,
    out: Annotated[Path | None, typer.Option(help="Folder [default: runs/plasticity, runs/plasticity-2, ...].")] = None,
    plot: Annotated[bool, typer.Option(help="Also write plasticity.html to the folder.")] = True,
    json: Json = False,
) -> None:
    """Measure the accuracy recovered after pruning.

    Pruning plasticity, as in Liu et al. 2021 (arXiv:2106.10404). One dense run is pruned by magnitude at several times and
    rates, with and without regrowing weights, and each branch is trained further. CONFIG gives the network, the data and
    the recipe; published settings of its extractor are not used. With --out, branches that are in the folder are not run
    again.
    """
    from subnet_search.analysis.plasticity import plasticity as run
    from subnet_search.extraction.config import RunConfig
    from subnet_search.extraction.config_file import read_config
    from subnet_search.extraction.run_folder import free_folder

    points, rates = numbers("--at", at), numbers("--rate", rate)
    settings = read_config(RunConfig, config, set_ or ())
    folder = out or free_folder("plasticity")
    leading = settings.task.leading
    with _follow(json, f"the same command with --out {folder}", leading) as callbacks:
        records = run(settings, epochs, at=points, rate=rates, regrow=regrow, out=folder, **callbacks)
    if json:
        format.print_json(records)
    else:
        columns = {"at": "at", "step": "step", "rate": "pruned", "regrow": "regrown"}
        moments = {"before": "before", "pruned": "after", "after": f"+{epochs} epochs", "won_back": "won back"}
        moments |= {"unpruned": "unpruned", "difference": "difference"}
        format.table(records, columns | {f"{leading}_{key}": heading for key, heading in moments.items()}, repeat=4)
        name = in_words(leading, "validation").capitalize()
        format.say(f"\n{name}; in {folder}/plasticity.json")
    if plot:
        from subnet_search.analysis import plots

        path = folder / "plasticity.html"
        _draw(
            path, lambda: plots.plasticity(records, path, f"Pruning plasticity: {settings.network.name}, {settings.data.name}")
        )


def masks(
    files: Annotated[list[Path], typer.Argument(help="Files of subnetworks or masks.")],
    json: Json = False,
) -> None:
    """Compare the masks of several files.

    Prints densities and dead outputs by layer, and overlaps. The overlap of each pair of files is the Jaccard index, shown
    with its expected value for random masks.
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
        format.console.print("\nOverlap: weights kept in both / weights kept in either; by chance: expected for random masks")
        pairs = [f"{a} and {b}" for a, b in itertools.combinations(names, 2)]
        rows = [{"pair": pair, **one} for pair, one in zip(pairs, record["overlaps"], strict=True)]
        format.table(rows, {"pair": "pair", "overlap": "overlap", "chance": "by chance"})


def _layer(layer: str, found: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Row of a layer: number of weights, and density and dead outputs in each file."""
    row: dict[str, Any] = {"weights": next(one["layer_weights"][layer] for one in found if layer in one["layer_weights"])}
    for name, one in zip(names, found, strict=True):
        row[f"density {name}"] = one["layer_density"].get(layer)
        row[f"dead {name}"] = one["dead_outputs"].get(layer)
    return row


def accuracy_curve(rows: Sequence[dict[str, Any]], folder: Path, title: str, quiet: bool) -> None:
    """Print the table of a run's densities, and write curve.html next to curve.json."""
    leading = leading_in(rows[0]) if rows else CLASSIFICATION.leading
    named = {f"val_{leading}": "validation", f"test_{leading}": "test"}
    if leading != CLASSIFICATION.leading:
        named = {key: f"{split} {in_words(leading)}" for key, split in named.items()}
    if not quiet:
        format.console.print()
        columns = {"density": "density", **named, "kept": "weights"}
        named_files = [{**row, "subnetwork": Path(row["subnetwork"]).name} for row in rows]
        format.table(
            named_files, {**columns, "bytes": "size", "subnetwork": "file"}, title=f"One training, several densities: {folder}"
        )
        for row in rows:
            if row["collapsed"]:
                text = f"density {row['asked']:g}: no weight is left in {', '.join(row['collapsed'])}"
                format.say(text)
    from subnet_search.analysis import plots

    points = [
        {"label": label, "density": row["density"], **dict.fromkeys(("mean", "low", "high"), row[key])}
        for key, label in named.items()
        for row in rows
        if row[key] is not None
    ]
    path = folder / "curve.html"
    _draw(path, lambda: plots.accuracy_density(points, path, title, metric=leading))


def _draw(path: Path, plot: Callable[[], None]) -> None:
    """Write a plot and print its path on standard error, or the reason why there is none."""
    try:
        plot()
        format.note(f"plot: {path}")
    except UserError as error:
        format.note(f"no plot: {error}")


@contextmanager
def _follow(quiet: bool, resume_command: str, leading: str) -> Iterator[dict[str, Any]]:
    """Callbacks for `plasticity.plasticity`: progress bar, one line per branch, and stopping on Ctrl-C."""
    from subnet_search.cli.render.signals import stop_on_signal
    from subnet_search.extraction.progress import Screen, step_bar

    bar = step_bar(Screen(not quiet))
    task = bar.add_task("the dense run", total=None)

    def on_branch(record: dict[str, Any]) -> None:
        grown = ", regrown" if record["regrow"] else ""
        three = " -> ".join(format.cell(leading, record[f"{leading}_{when}"]) for when in ("before", "pruned", "after"))
        text = f"at {record['at']:g}, {100 * record['rate']:.4g} % pruned{grown}: {three}"
        bar.update(task, description=text)
        if not quiet:
            format.note(text)

    with stop_on_signal(f"continue with {resume_command}") as should_stop, bar:
        on_step = lambda done, total: bar.update(task, completed=done, total=total)  # noqa: E731
        yield {"on_step": on_step, "on_branch": on_branch, "should_stop": should_stop}
