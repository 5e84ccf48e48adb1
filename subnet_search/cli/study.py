"""The commands on studies."""

from pathlib import Path
from typing import Annotated, Any

import typer

from subnet_search.cli import show
from subnet_search.errors import Interrupted

studies = typer.Typer(help="Search over runs with Optuna, and look into what was found.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The study's name.")]
Set = Annotated[list[str] | None, typer.Option("-s", "--set", metavar="KEY=VALUE", help="Override any key; VALUE is YAML.")]
Storage = Annotated[
    str | None,
    typer.Option(
        help="Any Optuna storage URL [default: the spec's, or sqlite:///runs/studies.db].", envvar="SUBNET_SEARCH_STORAGE"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else on standard output.")]
Trials = Annotated[int | None, typer.Option(min=1, help="Finish this many trials in all [default: the spec's].")]
Timeout = Annotated[float | None, typer.Option(min=0, help="Begin no trial after this many seconds.")]


@studies.command(epilog="Example: subnet-search study run studies/quickstart.yaml --workers 2")
def run(
    spec: Annotated[str, typer.Argument(help="A study's YAML file, or the name of a study to continue.")],
    set_: Set = None,
    storage: Storage = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes on this machine [default: the spec's].")] = None,
    trials: Trials = None,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Start a study, or continue it."""
    from subnet_search.cli.progress import study_progress
    from subnet_search.cli.signals import stop_on_signal
    from subnet_search.search.inspect import overview, trial_rows
    from subnet_search.search.launch import find_spec, prepare_study, run_study

    wanted = find_spec(spec, set_ or [], storage)
    url = storage or wanted.storage
    study = prepare_study(wanted, url)
    budget = trials or wanted.trials
    try:
        with stop_on_signal() as should_stop, study_progress(lambda: trial_rows(study), budget, quiet=json):
            study = run_study(wanted, storage=url, workers=workers, trials=budget, timeout=timeout, should_stop=should_stop)
    except Interrupted as stop:
        raise Interrupted(f"{stop}; go on with: subnet-search study run {spec}") from stop
    record = overview(study, wanted)
    if json:
        show.print_json(record)
    else:
        _overview(record)


@studies.command(epilog="Example: subnet-search study worker quickstart --storage postgresql://me@host/studies")
def worker(
    name: Name,
    storage: Storage = None,
    trials: Trials = None,
    timeout: Timeout = None,
    json: Json = False,
) -> None:
    """Join a study from any machine, until its budget is met."""
    from subnet_search.cli.signals import stop_on_signal
    from subnet_search.search.worker import run_worker

    with stop_on_signal() as should_stop:
        ran = run_worker(name, _url(storage), trials=trials, timeout=timeout, should_stop=should_stop)
    if json:
        show.print_json({"name": name, "ran": ran})
    else:
        show.console.print(f"ran trials {', '.join(map(str, ran))} of {name}" if ran else f"{name} has all its trials")


@studies.command("list", epilog="Example: subnet-search study list --json")
def list_(storage: Storage = None, json: Json = False) -> None:
    """All studies in a storage."""
    from subnet_search.search.backends import open_storage
    from subnet_search.search.inspect import list_studies

    rows = list_studies(open_storage(_url(storage)))
    if json:
        show.print_json(rows)
    else:
        show.table(rows, {"name": "study", "states": "trials", "best": "best", "started": "started"})


@studies.command("show", epilog="Example: subnet-search study show quickstart")
def show_(name: Name, storage: Storage = None, json: Json = False) -> None:
    """A study on one page."""
    from subnet_search.search.inspect import overview
    from subnet_search.search.storage import spec_of

    study = _study(name, storage)
    record = overview(study, spec_of(study))
    if json:
        show.print_json(record)
    else:
        _overview(record)


@studies.command(epilog="Example: subnet-search study trials quickstart")
def trials(name: Name, storage: Storage = None, json: Json = False) -> None:
    """Every trial of a study."""
    from subnet_search.search.inspect import trial_rows

    rows = trial_rows(_study(name, storage))
    if json:
        show.print_json(rows)
        return
    columns = {"number": "trial", "state": "state", "val_accuracy": "valid.", "density": "density", "seconds": "time"}
    flat = [{**row, **row["params"]} for row in rows]
    params = sorted({key for row in rows for key in row["params"]})
    reason = {"reason": "reason"} if any(row["reason"] for row in rows) else {}
    show.table(flat, {**columns, **{key: key.rpartition(".")[2] for key in params}, **reason})


@studies.command(epilog="Example: subnet-search study trial quickstart 7")
def trial(
    name: Name,
    number: Annotated[int, typer.Argument(help="The trial's number.")],
    storage: Storage = None,
    json: Json = False,
) -> None:
    """One trial, with everything stored about it."""
    from subnet_search.config import flatten
    from subnet_search.search.inspect import find_trial, trial_details

    record = trial_details(find_trial(_study(name, storage), number))
    if json:
        show.print_json(record)
        return
    config = record.pop("config")
    trace = record.pop("traceback")
    show.pairs({key: value for key, value in record.items() if value not in (None, {})}, title=f"Trial {number} of {name}")
    if config:
        show.console.print()
        show.pairs({key: str(value) for key, value in flatten(config).items()}, title="Configuration")
    if trace:
        show.console.print(f"\n{trace}", markup=False)


@studies.command(epilog="Example: subnet-search study best quickstart --json")
def best(name: Name, storage: Storage = None, json: Json = False) -> None:
    """The best trial; with several objectives, the Pareto front."""
    from subnet_search.search.inspect import need_best, trial_row

    rows = [trial_row(found) for found in need_best(_study(name, storage))]
    if json:
        show.print_json(rows[0] if len(rows) == 1 else rows)
    else:
        _best(rows)


@studies.command(epilog="Example: subnet-search study extract quickstart --best --out runs/quickstart")
def extract(
    name: Name,
    number: Annotated[int | None, typer.Option("--trial", help="The trial's number [default: the best].")] = None,
    best: Annotated[bool, typer.Option("--best", help="The best trial; the default.")] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder [default: runs/NAME, numbered].")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the run folder.")] = False,
    storage: Storage = None,
    json: Json = False,
) -> None:
    """Train a trial again, to its subnetwork, and check that it is the same one."""
    from subnet_search.cli.progress import follow_run
    from subnet_search.extraction import free_folder
    from subnet_search.search.inspect import find_trial, need_best
    from subnet_search.search.reproduce import pick_trial, train_again

    study = _study(name, storage)
    chosen = find_trial(study, number) if number is not None and not best else pick_trial(need_best(study))
    folder = out or free_folder(name)
    command = f"subnet-search study extract {name} --trial {chosen.number} --resume --out {folder}"
    with follow_run(json, command) as callbacks:
        again = train_again(chosen, folder, resume=resume, **callbacks)
    if json:
        show.print_json(
            {
                **again.subnetwork.summary(),
                "trial": chosen.number,
                "same": again.same,
                "overlap": again.overlap,
                "changed": again.changed,
            }
        )
        return
    show.console.print(f"Trial {chosen.number} of {name}: {again.in_words()}", markup=False)
    show.subnetwork_summary(again.subnetwork.summary())


def _url(storage: str | None) -> str:
    from subnet_search.search.spec import DEFAULT_STORAGE

    return storage or DEFAULT_STORAGE


def _study(name: str, storage: str | None) -> Any:
    from subnet_search.search.backends import open_storage
    from subnet_search.search.storage import load_study

    return load_study(name, open_storage(_url(storage)))


def _overview(record: dict[str, Any]) -> None:
    plain = {key: value for key, value in record.items() if key not in ("best", "space") and value not in (None, {}, [])}
    show.pairs({**plain, "searched over": show.cell("", record["space"])})
    if record["best"]:
        show.console.print()
        _best(record["best"])
        show.console.print(f"\nGet it: subnet-search study extract {record['name']}")


def _best(rows: list[dict[str, Any]]) -> None:
    for row in rows:
        found = {key: row[key] for key in ("val_accuracy", "test_accuracy", "density", "seconds")}
        words = {"val_accuracy": "validation accuracy", "test_accuracy": "test accuracy"}
        shown = {words.get(key, key): show.cell(key, value) for key, value in found.items()}
        params = {key: show.cell("", value) for key, value in row["params"].items()}
        show.pairs({**shown, **params}, title=f"Best: trial {row['number']}")
