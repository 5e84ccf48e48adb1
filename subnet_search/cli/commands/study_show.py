"""The commands that look into studies. They read the storage and nothing else."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from subnet_search.analysis.plots import check_path
from subnet_search.cli.commands._options import Json
from subnet_search.cli.commands.study_run import Name, Storage, one_line_errors
from subnet_search.cli.commands.study_run import studies as studies
from subnet_search.cli.render import format, study_page, tables
from subnet_search.core.errors import UserError

if TYPE_CHECKING:
    from subnet_search.search.storage.read import Snapshot

Filter = Annotated[
    list[str] | None,
    typer.Option("--filter", metavar="CONDITION", help='As in "density<=0.1", extractor=rigl or "reason~nan"; several: all.'),
]
Plot = Annotated[Path | None, typer.Option(metavar="FILE.html", help="Also draw it into this file.")]


@studies.command("list", epilog="Example: subnet-search study list --json")
@one_line_errors
def list_(storage: Storage = None, json: Json = False) -> None:
    """All studies in a storage."""
    from subnet_search.search.queries.queries import list_studies
    from subnet_search.search.storage.connect import DEFAULT_STORAGE, open_storage

    rows = list_studies(open_storage(storage or DEFAULT_STORAGE))
    if json:
        format.print_json(rows)
    elif rows:
        columns = {"name": "study", "states": "trials", "objective": "for", "best": "best", "started": "started"}
        best = [format.cell(row["objective"][0], row["best"]) for row in rows]
        told = [{**row, "states": study_page.states(row["states"]), "best": one} for row, one in zip(rows, best, strict=True)]
        format.table(told, columns)
    else:
        format.console.print("no studies yet (start one with: subnet-search study run)")


@studies.command("show", epilog="Example: subnet-search study show quickstart")
@one_line_errors
def show_(name: Name, storage: Storage = None, json: Json = False) -> None:
    """A study on one page."""
    from subnet_search.search.queries.study_summary import summarise_study

    record = summarise_study(_snapshot(name, storage))
    if json:
        format.print_json(record)
    else:
        study_page.summarise_study(record, storage)


@studies.command(
    epilog='Example: subnet-search study trials quickstart --sort val_accuracy --desc --filter "density<=0.2" --limit 10'
)
@one_line_errors
def trials(
    name: Name,
    sort: Annotated[str | None, typer.Option(metavar="COLUMN", help="Order by a column; missing values come last.")] = None,
    desc: Annotated[bool, typer.Option("--desc", help="The highest first.")] = False,
    filter_: Filter = None,
    columns: Annotated[str | None, typer.Option(metavar="COLUMN,...", help="Show these [default: as many as fit].")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values [default: of all columns].")] = False,
    storage: Storage = None,
    json: Json = False,
) -> None:
    """The trials of a study as a table.

    Columns are number, state, the objectives, everything that trials recorded (density, steps, seconds, reason, ...) and
    the parameters, by their keys or the last part of them: recipe.lr or lr.
    """
    from subnet_search.search.queries.queries import trial_row
    from subnet_search.search.queries.trial_table import arrange, columns_of, find_column, flat_rows, select

    if csv and json:
        raise UserError("--csv or --json, not both")
    study = _snapshot(name, storage)
    rows = flat_rows(study)
    known = columns_of(rows) or ["number", "state"]
    wanted = [find_column(word.strip(), known) for word in columns.split(",")] if columns else None
    rows = select(rows, filter_ or (), known)
    if sort or desc:
        rows = arrange(rows, find_column(sort or "number", known), desc)
    rows = rows[:limit]
    if csv:
        tables.csv([{key: row.get(key) for key in wanted or known} for row in rows], wanted or known)
    elif json and wanted:
        tables.json_rows({key: row.get(key) for key in wanted} for row in rows)
    elif json:
        of = {trial.number: trial for trial in study.get_trials()}
        tables.json_rows(trial_row(of[row["number"]]) for row in rows)
    else:
        tables.trials(rows, study, wanted)


@studies.command(epilog="Example: subnet-search study trial quickstart 7")
@one_line_errors
def trial(
    name: Name,
    number: Annotated[int, typer.Argument(help="The trial's number.")],
    storage: Storage = None,
    json: Json = False,
) -> None:
    """Everything about one trial, and the end of its log."""
    from subnet_search.search.queries.queries import trial_details

    record = trial_details(_study(name, storage), number)
    if json:
        format.print_json(record)
    else:
        study_page.trial(record, name)


@studies.command(epilog="Example: subnet-search study best quickstart --json")
@one_line_errors
def best(name: Name, storage: Storage = None, json: Json = False) -> None:
    """The best trial over its seeds, or the Pareto front."""
    from subnet_search.search.queries.queries import need_ranked, ranked_row
    from subnet_search.search.storage.ranking import objectives

    study = _snapshot(name, storage)
    rows = [ranked_row(ranked) for ranked in need_ranked(study)]
    if json:
        format.print_json(rows[0] if len(rows) == 1 else rows)
    else:
        study_page.best(rows, objectives(study), sum(trial.state.name == "COMPLETE" for trial in study.get_trials()))


@studies.command(epilog="Example: subnet-search study compare quickstart quickstart_hyperband")
@one_line_errors
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A study.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another one, for the same objective.")],
    storage: Storage = None,
    json: Json = False,
) -> None:
    """Two studies side by side, also after equal work."""
    from subnet_search.search.queries.study_diff import diff_studies

    record = diff_studies(_snapshot(a, storage), _snapshot(b, storage))
    if json:
        format.print_json(record)
    else:
        study_page.diff_studies(record)


@studies.command(epilog="Example: subnet-search study pareto quickstart --objectives val_accuracy,density --plot front.html")
@one_line_errors
def pareto(
    name: Name,
    objectives: Annotated[
        str | None,
        typer.Option(metavar="NAME,NAME", help="Recorded measures [default: the study's objectives, or its one and density]."),
    ] = None,
    plot: Plot = None,
    storage: Storage = None,
    json: Json = False,
) -> None:
    """The Pareto front over any measures that trials recorded.

    A value is the mean over a trial's seeds. Trials that break a constraint are kept, and marked.
    """
    from subnet_search.search.storage.ranking import default_names, front

    if plot:
        check_path(plot)
    study = _snapshot(name, storage)
    names = [word.strip() for word in objectives.split(",")] if objectives else default_names(study)
    rows = front(study, names)
    if plot:
        from subnet_search.analysis.plots import pareto as draw

        draw(rows, names, plot, f"{name}: {' and '.join(names)}")
    if json:
        format.print_json([row for row in rows if row["front"]])
    else:
        tables.front([row for row in rows if row["front"]], names, len(rows))
    _print_plot(plot)


@studies.command(epilog="Example: subnet-search study importance quickstart --evaluator fanova")
@one_line_errors
def importance(
    name: Name,
    evaluator: Annotated[str, typer.Option(help="pedanova: what sets the best apart; fanova: variance.")] = "pedanova",
    objective: Annotated[
        str | None, typer.Option(metavar="NAME", help="Any recorded measure [default: the study's objective].")
    ] = None,
    filter_: Filter = None,
    plot: Plot = None,
    storage: Storage = None,
    json: Json = False,
) -> None:
    """Which parameters matter, by an evaluator of Optuna's.

    With --filter, among some of the trials alone: --filter extractor=rigl for the parameters of one method.
    """
    from subnet_search.search.queries.importance import importance as evaluate
    from subnet_search.search.queries.trial_table import columns_of, flat_rows, select
    from subnet_search.search.storage.read import Snapshot

    if plot:
        check_path(plot)
    study = _snapshot(name, storage)
    if filter_:
        rows = flat_rows(study)
        kept = {row["number"] for row in select(rows, filter_, columns_of(rows))}
        study = Snapshot(study, [trial for trial in study.get_trials() if trial.number in kept])
    record = evaluate(study, evaluator, objective)
    if plot and record["importances"]:
        from subnet_search.analysis.plots import importance as draw

        draw(record, plot, f"{name}: what matters for {record['objective'] or 'the Pareto front'}")
    if json:
        format.print_json(record)
    else:
        study_page.importance(record, name, storage=storage)
    if record["importances"]:
        _print_plot(plot)


def _study(name: str, storage: str | None) -> Any:
    from subnet_search.search.storage.connect import DEFAULT_STORAGE, load_study, open_storage

    return load_study(name, open_storage(storage or DEFAULT_STORAGE))


def _snapshot(name: str, storage: str | None) -> "Snapshot":
    from subnet_search.search.storage.read import Snapshot

    return Snapshot(_study(name, storage))


def _print_plot(plot: Path | None) -> None:
    if plot:
        format.errors.print(f"plot: {plot}", markup=False, soft_wrap=True)
