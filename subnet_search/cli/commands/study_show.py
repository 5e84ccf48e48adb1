"""Commands that read studies."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from subnet_search.analysis.plots import check_path
from subnet_search.cli.commands._options import Json
from subnet_search.cli.commands.study_run import Name, Storage, find_study, open_store, study_command
from subnet_search.cli.commands.study_run import studies as studies
from subnet_search.cli.render import format, study_page, tables
from subnet_search.core.errors import UserError

if TYPE_CHECKING:
    from subnet_search.search.storage.read import Snapshot

Filter = Annotated[
    list[str] | None,
    typer.Option(
        "--filter",
        metavar="CONDITION",
        help='Such as "density<=0.1", extractor=rigl or "reason~nan" (contains); repeat for several.',
    ),
]
Plot = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Also write a plot: .html, .svg, .pdf, .png; or its numbers: .csv, .tex.")
]


@study_command("list --json", "list")
def list_(storage: Storage = None, json: Json = False) -> None:
    """List the studies in a storage."""
    from subnet_search.search.queries.queries import list_studies

    format.report(list_studies(open_store(storage)), json, study_page.list_studies)


@study_command("show quickstart", "show")
def show_(name: Name, storage: Storage = None, json: Json = False) -> None:
    """Show a summary of a study.

    It has the search space, progress, failures, best trials and important parameters.
    """
    from subnet_search.search.queries.study_summary import summarise_study

    format.report(summarise_study(_snapshot(name, storage)), json, study_page.summarise_study, storage)


@study_command('trials quickstart --sort val_accuracy --desc --filter "density<=0.2" --limit 10')
def trials(
    name: Name,
    sort: Annotated[str | None, typer.Option(metavar="COLUMN", help="Sort by a column; missing values come last.")] = None,
    desc: Annotated[bool, typer.Option("--desc", help="Sort in descending order.")] = False,
    filter_: Filter = None,
    columns: Annotated[
        str | None, typer.Option(metavar="COLUMN,...", help="Columns to show [default: as many as fit].")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Show at most this many trials.")] = None,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV, with all columns unless --columns is given.")] = False,
    storage: Storage = None,
    json: Json = False,
) -> None:
    """Show the trials of a study as a table.

    Columns: number, state, objectives, recorded values (density, steps, seconds, reason, ...) and parameters, by their full
    key or its last part: recipe.lr or lr.
    """
    from subnet_search.search.queries.queries import trial_row
    from subnet_search.search.queries.trial_table import arrange, columns_of, find_column, flat_rows, select
    from subnet_search.search.storage.records import task_metrics

    if csv and json:
        raise UserError("use either --csv or --json")
    study = _snapshot(name, storage)
    rows = flat_rows(study)
    available = columns_of(rows) or ["number", "state"]
    wanted = [find_column(word.strip(), available) for word in columns.split(",")] if columns else None
    rows = select(rows, filter_ or (), available)
    if sort or desc:
        rows = arrange(rows, find_column(sort or "number", available), desc)
    rows = rows[:limit]
    if csv:
        tables.csv([{key: row.get(key) for key in wanted or available} for row in rows], wanted or available)
    elif json and wanted:
        tables.json_rows({key: row.get(key) for key in wanted} for row in rows)
    elif json:
        of = {trial.number: trial for trial in study.get_trials()}
        tables.json_rows(trial_row(of[row["number"]], task_metrics(study)) for row in rows)
    else:
        tables.trials(rows, study, wanted)


@study_command("trial quickstart 7")
def trial(
    name: Name,
    number: Annotated[int, typer.Argument(help="The trial's number.")],
    storage: Storage = None,
    json: Json = False,
) -> None:
    """Show everything stored about a trial, and the end of its log."""
    from subnet_search.search.queries.queries import trial_details

    format.report(trial_details(find_study(name, storage), number), json, study_page.trial, name)


@study_command("best quickstart --json")
def best(name: Name, storage: Storage = None, json: Json = False) -> None:
    """Show the best trial, or the Pareto front.

    Trials are ranked by the mean over their seeds.
    """
    from subnet_search.search.queries.queries import need_ranked, ranked_row
    from subnet_search.search.storage.ranking import objectives
    from subnet_search.search.storage.records import task_metrics

    study = _snapshot(name, storage)
    rows = [ranked_row(ranked, task_metrics(study)) for ranked in need_ranked(study)]
    if json:
        format.print_json(rows[0] if len(rows) == 1 else rows)
    else:
        study_page.best(rows, objectives(study), sum(trial.state.name == "COMPLETE" for trial in study.get_trials()))


@study_command("compare quickstart quickstart_hyperband")
def compare(
    a: Annotated[str, typer.Argument(metavar="A", help="A study.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another study with the same objectives.")],
    storage: Storage = None,
    json: Json = False,
) -> None:
    """Compare two studies.

    Prints budgets, best trials, the best value after equal numbers of trials and steps, and different settings.
    """
    from subnet_search.search.queries.study_diff import diff_studies

    format.report(diff_studies(_snapshot(a, storage), _snapshot(b, storage)), json, study_page.diff_studies)


@study_command("pareto quickstart --objectives val_accuracy,density --plot front.html")
def pareto(
    name: Name,
    objectives: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME", help="Recorded metrics [default: the study's objectives, or its objective and density]."
        ),
    ] = None,
    plot: Plot = None,
    storage: Storage = None,
    json: Json = False,
) -> None:
    """Show the Pareto front over any metrics that trials recorded.

    Values are means over a trial's seeds. Trials that violate a constraint are included and marked.
    """
    from subnet_search.search.storage.ranking import default_names, front

    if plot:
        check_path(plot)
    study = _snapshot(name, storage)
    names = [word.strip() for word in objectives.split(",")] if objectives else default_names(study)
    rows = front(study, names)
    if plot:
        from subnet_search.search.queries.figures import pareto as draw

        draw(study, rows, names, plot, f"{name}: {' and '.join(names)}")
    format.report([row for row in rows if row["front"]], json, tables.front, names, len(rows))
    _print_plot(plot)


@study_command("importance quickstart --evaluator fanova")
def importance(
    name: Name,
    evaluator: Annotated[
        str, typer.Option(help="pedanova: difference between the best and the other trials; fanova: explained variance.")
    ] = "pedanova",
    objective: Annotated[
        str | None, typer.Option(metavar="NAME", help="Any recorded metric [default: the study's objective].")
    ] = None,
    filter_: Filter = None,
    plot: Plot = None,
    storage: Storage = None,
    json: Json = False,
) -> None:
    """Show the importance of each parameter.

    It is computed by one of Optuna's evaluators.

    With --filter, only the matching trials are used: --filter extractor=rigl gives the parameters of one method.
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
        from subnet_search.search.queries.figures import importance as draw

        draw(study, record, plot, f"{name}: importance for {record['objective'] or 'the Pareto front'}")
    format.report(record, json, study_page.importance, name, None, storage)
    if record["importances"]:
        _print_plot(plot)


def _snapshot(name: str, storage: str | None) -> "Snapshot":
    from subnet_search.search.storage.read import Snapshot

    return Snapshot(find_study(name, storage))


def _print_plot(plot: Path | None) -> None:
    if plot:
        format.note(f"plot: {plot}")
