"""The commands on studies."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from subnet_search.cli.commands._options import Json, Set
from subnet_search.cli.render import format, study_page
from subnet_search.core.errors import Interrupted, UserError, unknown

studies = typer.Typer(help="Search over runs with Optuna, and look into what was found.", no_args_is_help=True)
Options = ParamSpec("Options")

Name = Annotated[str, typer.Argument(help="The study's name.")]
Storage = Annotated[
    str | None,
    typer.Option(
        help="sqlite:///FILE or postgresql://... [default: the spec's, or sqlite:///runs/studies.db].",
        envvar="SUBNET_SEARCH_STORAGE",
    ),
]
Trials = Annotated[int | None, typer.Option(min=1, help="Finish this many trials in all [default: the spec's].")]
Timeout = Annotated[float | None, typer.Option(min=0, help="Begin no trial after this many seconds.")]
Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-import",
        metavar="NAME",
        help="What a stored study may import: package.module:Name, or the module; torchvision:NAME lets it download "
        "weights, cifar10 that data set to a folder it names. Several: each with its own --allow-import.",
    ),
]
Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait for a storage that does not answer at first.")]


@studies.command(epilog="Example: subnet-search study run studies/quickstart.yaml --workers 2")
def run(
    spec: Annotated[str, typer.Argument(help="A study's YAML file, or the name of a study to continue.")],
    set_: Set = None,
    storage: Storage = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Trials at a time [default: the spec's].")] = None,
    trials: Trials = None,
    timeout: Timeout = None,
    engine: Annotated[str, typer.Option(help="local: processes on this machine; ray: placed on a cluster by Ray.")] = "local",
    address: Annotated[str | None, typer.Option(help="Of the Ray cluster [default: one on this machine].")] = None,
    gpus_per_trial: Annotated[float, typer.Option(min=0, help="Of a GPU, for each trial (ray).")] = 0.0,
    cpus_per_trial: Annotated[float | None, typer.Option(min=0, help="Processors for each [default: its threads].")] = None,
    allow_import: Imports = None,
    wait: Wait = 0,
    json: Json = False,
) -> None:
    """Start a study, or continue it.

    What a file names may be imported; a study that is continued by its name needs --allow-import for networks of your own.
    """
    from subnet_search.cli.render.progress import study_progress
    from subnet_search.cli.render.signals import stop_on_signal
    from subnet_search.search.queries.queries import trial_rows
    from subnet_search.search.queries.study_summary import summarise_study
    from subnet_search.search.storage.retry import PATIENCE, patiently
    from subnet_search.search.studies.launcher import Cluster, find_spec, prepare_study, run_study

    if engine not in ("local", "ray"):
        raise unknown("engine", engine, ("local", "ray"))
    if engine == "local" and (address or gpus_per_trial or cpus_per_trial):
        raise UserError("--address, --gpus-per-trial and --cpus-per-trial are for --engine ray")
    cluster = Cluster(address, gpus_per_trial, cpus_per_trial) if engine == "ray" else None
    wanted, allowed = find_spec(spec, set_ or [], storage, allow_import or ())
    url = storage or wanted.storage
    study = prepare_study(wanted, url, wait)
    budget = trials or wanted.trials
    try:
        with stop_on_signal() as should_stop, study_progress(lambda: trial_rows(study), budget, quiet=json):
            study = run_study(
                wanted,
                storage=url,
                workers=workers,
                trials=budget,
                timeout=timeout,
                cluster=cluster,
                wait=PATIENCE,  # it was there a moment ago
                allow_imports=allowed,
                should_stop=should_stop,
            )
    except Interrupted as stop:
        same = {"set": set_, "storage": storage, "trials": trials, "workers": workers, "allow_import": allow_import}
        again = format.command("study run", spec, **same, engine=engine if cluster else None, address=address)
        raise Interrupted(f"{stop}; go on with: {again}") from stop
    record = patiently(summarise_study, study)
    if json:
        format.print_json(record)
    else:
        study_page.summarise_study(record, storage)


@studies.command(epilog="Example: subnet-search study worker quickstart --storage postgresql://me@host/studies")
def worker(
    name: Name,
    storage: Storage = None,
    trials: Trials = None,
    timeout: Timeout = None,
    allow_import: Imports = None,
    wait: Wait = 0,
    json: Json = False,
) -> None:
    """Join a study from any machine, until its budget is met."""
    from subnet_search.cli.render.signals import stop_on_signal
    from subnet_search.search.engine.worker import run_worker

    with stop_on_signal() as should_stop:
        ran = run_worker(
            name,
            _url(storage),
            trials=trials,
            timeout=timeout,
            wait=wait,
            allow_imports=allow_import or (),
            should_stop=should_stop,
        )
    if json:
        format.print_json({"name": name, "ran": ran})
    else:
        format.console.print(
            f"ran trials {', '.join(map(str, ran))} of {name}"
            if ran
            else f"nothing to run: {name} has all its trials, or was stopped",
            markup=False,
        )


@studies.command(epilog="Example: subnet-search study extract quickstart 17 --out runs/quickstart")
def extract(
    name: Name,
    number: Annotated[int | None, typer.Argument(help="The trial's number [default: the best].")] = None,
    trial: Annotated[int | None, typer.Option("--trial", help="The same.")] = None,
    best: Annotated[bool, typer.Option("--best", help="The best trial; the default.")] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder [default: runs/NAME, numbered].")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in the run folder.")] = False,
    weights: Annotated[
        str | None, typer.Option(help="What the file stores, values or seed [default: as the study says].")
    ] = None,
    allow_import: Imports = None,
    storage: Storage = None,
    json: Json = False,
) -> None:
    """Train a trial again, to its subnetwork, and check that it is the same one."""
    from subnet_search.cli.render.progress import follow_run
    from subnet_search.extraction.run_folder import free_folder
    from subnet_search.search.queries.queries import find_trial, need_best
    from subnet_search.search.storage.study_folder import file_name
    from subnet_search.search.studies.reproduce import pick_trial, retrain_trial

    wanted = {one for one in (number, trial) if one is not None}
    if len(wanted) + best > 1:
        raise UserError("one trial is trained again: give its number, or --best")
    study = _study(name, storage)
    chosen = find_trial(study, *wanted) if wanted else pick_trial(need_best(study))
    folder = out or free_folder(file_name(name))
    options = {"out": folder, "storage": storage, "allow_import": allow_import}
    command = format.command("study extract", name, chosen.number, resume=True, **options)
    with follow_run(json, command) as callbacks:
        again = retrain_trial(
            chosen, folder, resume=resume, study=study, weights=weights, allow_imports=allow_import or (), **callbacks
        )
    if json:
        format.print_json(
            {
                **again.subnetwork.summary(),
                "trial": chosen.number,
                "same": again.same,
                "overlap": again.overlap,
                "changed": again.changed,
            }
        )
        return
    format.console.print(f"Trial {chosen.number} of {name}: {again.in_words()}", markup=False)
    format.subnetwork_summary(again.subnetwork.summary(), again.subnetwork.origin.unit)


def one_line_errors(command: Callable[Options, None]) -> Callable[Options, None]:
    """A command that one_line_errors a study: whatever is wrong with what it one_line_errors is said in one line."""

    @functools.wraps(command)
    def guarded_command(*values: Options.args, **options: Options.kwargs) -> None:
        from subnet_search.search.storage.connect import safe_url
        from subnet_search.search.storage.retry import guarded

        name, storage = options.get("name") or options.get("a"), options.get("storage")
        what = f"the study {name!r}" if name else "the storage"
        with guarded(f"{what} in {safe_url(_url(str(storage) if storage else None))}", passing=(typer.Abort, typer.Exit)):
            command(*values, **options)

    return guarded_command


def _url(storage: str | None) -> str:
    from subnet_search.search.storage.connect import DEFAULT_STORAGE

    return storage or DEFAULT_STORAGE


def _study(name: str, storage: str | None) -> Any:
    from subnet_search.search.storage.connect import load_study, open_storage

    return load_study(name, open_storage(_url(storage)))
