"""Commands that repair, stop, delete, export and import studies, and the dashboard."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from subnet_search.cli.commands.study_run import Name, Storage, find_study, open_store, study_command
from subnet_search.cli.commands.study_show import studies as studies
from subnet_search.cli.render import format, study_page
from subnet_search.core.errors import UserError

if TYPE_CHECKING:
    from subnet_search.search.studies.admin import PrunedFiles


@study_command("retry quickstart 3 7")
def retry(
    name: Name,
    numbers: Annotated[
        list[int] | None, typer.Argument(metavar="[N]...", help="Numbers of failed trials [default: all].")
    ] = None,
    storage: Storage = None,
) -> None:
    """Queue failed trials again.

    Each retry is a new trial with the same configuration and seed, for example after fixing a bug. A failed trial can be
    retried once.
    """
    from subnet_search.search.storage.records import plain_spec
    from subnet_search.search.studies.admin import retry as again

    study = find_study(name, storage)
    done = again(study, numbers or ())
    for number, reason in done.skipped.items():
        format.note(f"trial {number} was not queued: {reason}")
    if not done.queued:
        format.console.print(f"{name} has no failed trial to retry", markup=False)
        return
    trials = ", ".join(f"{old} as trial {new}" for old, new in done.queued.items())
    if len(done.queued) > 5:
        trials = f"{len(done.queued)} trials, as {min(done.queued.values())} to {max(done.queued.values())}"
    more = done.counting if done.counting > plain_spec(study).get("trials", 0) else None
    command = format.command("study run", name, trials=more, storage=storage)
    format.say(f"queued {trials}; run them with: {command}")


@study_command("reap quickstart")
def reap(
    name: Name,
    now: Annotated[
        bool, typer.Option("--now", help="Do not wait for heartbeats: treat all workers on other machines as dead.")
    ] = False,
    storage: Storage = None,
) -> None:
    """Requeue running trials whose worker is dead.

    The next worker resumes them from their checkpoints. Workers also do this automatically. A worker on another machine
    counts as dead after five missed heartbeats, so the command waits that long.
    """
    from subnet_search.search.studies.admin import release_lost_trials

    with format.errors.status("checking workers") as status:

        def watch(left: float, numbers: object) -> None:
            words = (
                f"waiting for heartbeats of trials {numbers} on other machines: {format.seconds(left)} left (--now skips this)"
            )
            if format.errors.is_terminal:
                status.update(words)
            elif not waits:
                format.note(words)
            waits.append(left)

        waits: list[float] = []
        trials = release_lost_trials(find_study(name, storage), now=now, watch=watch)
    for trial in trials:
        failed = f"has failed: {trial.user_attrs.get('reason')}" if trial.state.name == "FAIL" else "was requeued"
        format.say(f"trial {trial.number} {failed}")
    if not trials:
        format.console.print(f"no running trial of {name} has a dead worker", markup=False)


@study_command("stop quickstart --now")
def stop(
    name: Name,
    now: Annotated[bool, typer.Option("--now", help="Also interrupt running trials, after a checkpoint.")] = False,
    storage: Storage = None,
) -> None:
    """Stop a study on all machines.

    Its workers start no more trials and exit. `study run` continues the study.
    """
    from subnet_search.search.studies.admin import stop as end

    running = end(find_study(name, storage), now)
    trials = f"trial{'s' * (len(running) > 1)} {', '.join(map(str, running))}"
    when = "will write a checkpoint and stop within one heartbeat" if now else "will be finished first"
    more = f"; {trials} {when}" if running else ""
    command = format.command("study run", name, storage=storage)
    format.say(f"{name} starts no more trials{more}. Continue with: {command}")


@study_command("delete quickstart --keep-files")
def delete(
    name: Name,
    files: Annotated[
        bool, typer.Option("--files/--keep-files", help="Also delete its run folders on this machine and its artifacts.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Delete even if trials are running.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    storage: Storage = None,
) -> None:
    """Delete a study and its run folders permanently."""
    from subnet_search.search.engine.copies import adopt
    from subnet_search.search.storage.read import study_states
    from subnet_search.search.storage.study_folder import folder_of
    from subnet_search.search.studies.admin import check_idle, delete_study

    study = find_study(name, storage)
    if not force:
        check_idle(study)
    adopt(study)
    count, folder = study_states(study._storage)[name].total(), folder_of(study)
    with_files = f" with their run folders in {folder}" if files and folder.is_dir() else ""
    if not yes:
        if not sys.stdin.isatty():
            raise UserError(f"standard input is not a terminal: use --yes to delete {name} and its {count} trials{with_files}")
        typer.confirm(f"Delete {name} and its {count} trials{with_files}?", abort=True)
    deleted = [str(path) for path in delete_study(study, force=force, files=files)]
    format.say(f"deleted {', '.join([f'{name} with its {count} trials', *deleted])}")


@study_command("prune-files quickstart --keep 5", "prune-files")
def prune_files(
    name: Name,
    keep: Annotated[int, typer.Option(min=1, metavar="N", help="How many of the best trials keep their files.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only show what would be removed.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    storage: Storage = None,
) -> None:
    """Remove the run folders and artifacts of all finished trials but the best.

    The best trial (with its repeats), the Pareto front of a study with several objectives, and trials that run or wait keep
    their files. Of a comparison, all seeds of the best method and density do. The trials themselves stay in the study, which
    can be continued, and every trial's subnetwork can be trained again with `study extract`.
    """
    from subnet_search.search.studies.admin import prune_files as prune

    study = find_study(name, storage)
    planned = prune(study, keep, dry_run=True)
    what = _files(planned)
    numbers = ", ".join(map(str, planned.trials)) if len(planned.trials) <= 20 else f"{len(planned.trials)} trials"
    format.say(f"{name} keeps {study_page.folders(planned.kept)} of the best and of unfinished trials: {numbers or 'none yet'}")
    if not planned.deleted["folders"] and not planned.artifacts:
        format.say("there are no other files to remove")
        return
    if dry_run:
        format.say(f"would remove {what}")
        return
    if not yes:
        if not sys.stdin.isatty():
            raise UserError(f"standard input is not a terminal: use --yes to remove {what}")
        typer.confirm(f"Remove {what}?", abort=True)
    format.say(f"removed {_files(prune(study, keep))}")


def _files(pruned: "PrunedFiles") -> str:
    stored = f" and {pruned.artifacts:,} files in its artifact store" if pruned.artifacts else ""
    return f"{study_page.folders(pruned.deleted)} in {pruned.folder}{stored}"


@study_command("export quickstart quickstart.db")
def export(
    name: Name,
    file: Annotated[Path | None, typer.Argument(metavar="FILE.db", help="File to write [default: NAME.db].")] = None,
    storage: Storage = None,
) -> None:
    """Write a study to a SQLite file.

    Optuna and its dashboard can open the file, and `study import` adds it to any storage.
    """
    from subnet_search.search.storage.study_folder import file_name
    from subnet_search.search.storage.transfer import write_export

    path = file or Path(f"{file_name(name)}.db")
    write_export(find_study(name, storage), path)
    format.say(f"{path} ({format.size(path.stat().st_size)})")


@study_command("import quickstart.db --storage postgresql://me@host/studies", "import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.db", help="File from `study export`.")],
    name: Annotated[str | None, typer.Option(help="New name of the study.")] = None,
    storage: Storage = None,
) -> None:
    """Add a study from a file to a storage."""
    from subnet_search.search.storage.read import study_states
    from subnet_search.search.storage.transfer import import_study

    study = import_study(file, open_store(storage, create=True), name)
    count = study_states(study._storage)[study.study_name].total()
    command = format.command("study run", study.study_name, storage=storage)
    format.say(f"{study.study_name} with {count} trials; continue with: {command}")


@studies.command(epilog="Example: subnet-search study dashboard quickstart")
def dashboard(
    name: Annotated[str | None, typer.Argument(help="Study to open [default: the list of studies].")] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 chooses a free one.")] = 8080,
    storage: Storage = None,
) -> None:
    """Serve optuna-dashboard until Ctrl-C.

    Only browsers on this machine can open it.
    """
    from subnet_search.cli.render.signals import stop_on_signal
    from subnet_search.search.queries.dashboard import dashboard as server_of

    store = find_study(name, storage)._storage if name else open_store(storage)
    server = server_of(store, name, port)
    server.timeout = 0.5
    format.say(f"{server.page} (Ctrl-C ends it)")
    with stop_on_signal() as should_stop:
        while not should_stop():
            server.handle_request()
    server.server_close()
