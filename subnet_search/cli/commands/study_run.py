"""Commands that run studies and trials."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, ParamSpec

import typer

from subnet_search.cli.commands._options import DryRun, Json, Set
from subnet_search.cli.render import format, plan_page, study_page
from subnet_search.core.errors import UserError, unknown

studies = typer.Typer(help="Search methods and hyperparameters with Optuna.", no_args_is_help=True)
Options = ParamSpec("Options")

Name = Annotated[str, typer.Argument(help="The study's name.")]
Storage = Annotated[
    str | None,
    typer.Option(
        help="Storage URL: sqlite:///FILE or postgresql://... [default: the study file's, or sqlite:///runs/studies.db].",
        envvar="SUBNET_SEARCH_STORAGE",
    ),
]
Trials = Annotated[int | None, typer.Option(min=1, help="Total number of trials to finish [default: the study's].")]
Timeout = Annotated[float | None, typer.Option(min=0, help="Start no trial after this many seconds.")]
Imports = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-import",
        metavar="NAME",
        help="Allow a stored study to import package.module:Name or all of a module; torchvision:NAME also allows it to "
        "download weights, and cifar10 that data set to a folder of its choice. Repeat the option for several.",
    ),
]
Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait for a storage that does not respond at first.")]


@studies.command(epilog="Example: subnet-search study run studies/quickstart.yaml --workers 2")
def run(
    spec: Annotated[str, typer.Argument(help="YAML file of a study, or the name of a stored study to continue.")],
    set_: Set = None,
    storage: Storage = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Number of trials to run at once [default: the study's].")] = None,
    trials: Trials = None,
    timeout: Timeout = None,
    engine: Annotated[str, typer.Option(help="local: processes on this machine; ray: workers on a Ray cluster.")] = "local",
    address: Annotated[
        str | None, typer.Option(help="Address of the Ray cluster [default: start one on this machine].")
    ] = None,
    gpus_per_trial: Annotated[float, typer.Option(min=0, help="GPUs per trial, such as 0.5 (ray only).")] = 0.0,
    cpus_per_trial: Annotated[
        float | None, typer.Option(min=0, help="CPUs per trial (ray only) [default: the trial's threads].")
    ] = None,
    allow_import: Imports = None,
    wait: Wait = 0,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Start a study from a YAML file, or continue one.

    A YAML file may import your own networks and extractors; a study continued by its name needs --allow-import for them.
    """
    from subnet_search.cli.render.signals import stop_on_signal
    from subnet_search.search.queries.study_summary import summarise_study
    from subnet_search.search.storage.connect import DEFAULT_STORAGE
    from subnet_search.search.storage.retry import PATIENCE, patiently
    from subnet_search.search.studies.launcher import Cluster, find_spec, prepare_study, run_study

    if engine not in ("local", "ray"):
        raise unknown("engine", engine, ("local", "ray"))
    if engine == "local" and (address or gpus_per_trial or cpus_per_trial):
        raise UserError("--address, --gpus-per-trial and --cpus-per-trial are for --engine ray")
    cluster = Cluster(address, gpus_per_trial, cpus_per_trial) if engine == "ray" else None
    wanted, allowed = find_spec(spec, set_ or [], storage, allow_import or ())
    if dry_run:
        from subnet_search.search.spec.study_plan import plan_of_study

        plain = {**wanted.model_dump(mode="json", exclude={"run", "storage"}), "run": wanted.run.given()}
        plan = {"workers": workers or wanted.workers, "run": plan_of_study(wanted)}
        format.report({"study": plain, "space": wanted.searched.words(), **plan}, json, plan_page.study)
        return
    url = storage or wanted.storage
    prepare_study(wanted, url, wait)  # before signals are caught
    budget = trials or wanted.trials
    same = {"set": set_, "storage": storage, "trials": trials, "workers": workers, "allow_import": allow_import}
    again = format.command("study run", spec, **same, engine=engine if cluster else None, address=address)
    with stop_on_signal(f"continue with: {again}") as should_stop:
        study = run_study(
            wanted,
            storage=url,
            workers=workers,
            trials=budget,
            timeout=timeout,
            cluster=cluster,
            wait=PATIENCE,
            allow_imports=allowed,
            progress=not json,
            should_stop=should_stop,
        )
    elsewhere = storage or (None if url == DEFAULT_STORAGE else url)  # also where the YAML file names it
    format.report(patiently(summarise_study, study), json, study_page.summarise_study, elsewhere)


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
    """Run trials of a stored study in this process.

    It ends when the study is finished. Any number of workers can run on any machines.
    """
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
            f"ran trials {', '.join(map(str, ran))} of {name}" if ran else f"nothing to run: {name} is finished or was stopped",
            markup=False,
        )


@studies.command(epilog="Example: subnet-search study extract quickstart 17 --out runs/quickstart")
def extract(
    name: Name,
    number: Annotated[int | None, typer.Argument(help="The trial's number [default: the best].")] = None,
    trial: Annotated[int | None, typer.Option("--trial", help="The same as N.")] = None,
    best: Annotated[bool, typer.Option("--best", help="Use the best trial (the default).")] = False,
    out: Annotated[Path | None, typer.Option(help="Run folder [default: runs/NAME, runs/NAME-2, ...].")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in the run folder.")] = False,
    weights: Annotated[str | None, typer.Option(help="What the file stores: values or seed [default: the study's].")] = None,
    allow_import: Imports = None,
    storage: Storage = None,
    json: Json = False,
) -> None:
    """Train a trial again to write its subnetwork file.

    Checks that the subnetwork is identical to the trial's.
    """
    from subnet_search.cli.render.signals import stop_on_signal
    from subnet_search.extraction.run_folder import free_folder
    from subnet_search.search.queries.queries import find_trial, need_best
    from subnet_search.search.storage.study_folder import file_name
    from subnet_search.search.studies.reproduce import pick_trial, retrain_trial

    wanted = {one for one in (number, trial) if one is not None}
    if len(wanted) + best > 1:
        raise UserError("give either a trial number or --best")
    study = find_study(name, storage)
    chosen = find_trial(study, *wanted) if wanted else pick_trial(need_best(study))
    folder = out or free_folder(file_name(name))
    options = {"out": folder, "storage": storage, "allow_import": allow_import}
    command = format.command("study extract", name, chosen.number, resume=True, **options)
    with stop_on_signal(f"continue with: {command}") as should_stop:
        again = retrain_trial(
            chosen,
            folder,
            resume=resume,
            study=study,
            weights=weights,
            allow_imports=allow_import or (),
            progress=not json,
            should_stop=should_stop,
        )
    record = again.subnetwork.summary()
    if json:
        repeated = {"trial": chosen.number, "same": again.same, "overlap": again.overlap, "changed": again.changed}
        format.print_json({**record, **repeated})
    else:
        format.console.print(f"Trial {chosen.number} of {name}: {again.in_words()}", markup=False)
        format.subnetwork_summary(record, again.subnetwork.origin.unit)


def one_line_errors(command: Callable[Options, None]) -> Callable[Options, None]:
    """Decorator of commands that read a study: errors in stored data become one line."""

    @functools.wraps(command)
    def guarded_command(*values: Options.args, **options: Options.kwargs) -> None:
        from subnet_search.search.storage.connect import safe_url
        from subnet_search.search.storage.retry import guarded

        name, storage = options.get("name") or options.get("a"), options.get("storage")
        what = f"the study {name!r}" if name else "the storage"
        with guarded(f"{what} in {safe_url(_url(str(storage) if storage else None))}", passing=(typer.Abort, typer.Exit)):
            command(*values, **options)

    return guarded_command


def study_command(example: str, name: str | None = None) -> Callable[[Callable[Options, None]], Callable[Options, None]]:
    """Decorator of a command that reads a study. name: of the command, where it is not the function's."""
    add = studies.command(name, epilog=f"Example: subnet-search study {example}")
    return lambda command: add(one_line_errors(command))


def _url(storage: str | None) -> str:
    from subnet_search.search.storage.connect import DEFAULT_STORAGE

    return storage or DEFAULT_STORAGE


def open_store(storage: str | None, create: bool = False) -> Any:
    """The Optuna storage of an option `--storage`."""
    from subnet_search.search.storage.connect import open_storage

    return open_storage(_url(storage), create)


def find_study(name: str, storage: str | None) -> Any:
    """A study in the storage of an option `--storage`. Raises UserError with similar names if it does not exist."""
    from subnet_search.search.storage.connect import load_study

    return load_study(name, open_store(storage))
