"""Print studies and trials as text, for the commands in study_show.py."""

from collections.abc import Mapping, Sequence
from typing import Any

from subnet_search.cli.render import format, tables
from subnet_search.core.parameter_names import by_key, key_and_condition
from subnet_search.core.task_metrics import in_words, leading_in

Row = Mapping[str, Any]

# Keys of a trial that are shown in another form, or not at all.
APART = {"number", "state", "reason", "values", "last", "objectives", "params", "config", "traceback", "log", "reports"}
APART |= {"interruptions", "repeated", "seeds", "first", "rungs", "worker", "passes", "cell", "beat", "constraints"}
APART |= {"measured", "broken"}


def _words(row: Row) -> dict[str, str]:
    """Keys of a trial with their words."""
    leading = leading_in(row)
    of_task = {f"val_{leading}": in_words(leading, "validation"), f"test_{leading}": in_words(leading, "test")}
    return {**of_task, "seconds": "training time"}


def states(counts: Mapping[str, int]) -> str:
    """Number of trials by state, in one line."""
    return ", ".join(f"{count:,} {state}" for state, count in counts.items()) or "none"


def list_studies(rows: Sequence[Row]) -> None:
    """Print a table of studies."""
    columns = {"name": "study", "states": "trials", "objective": "objective", "best": "best", "started": "started"}
    shown = [{**r, "states": states(r["states"]), "best": format.cell(r["objective"][0], r["best"])} for r in rows]
    if rows:
        format.table(shown, columns)
    else:
        format.console.print("no studies yet (start one with: subnet-search study run)")


def summarise_study(record: Row, storage: str | None = None) -> None:
    """Print the summary of a study. storage: the --storage option, for the printed commands."""
    lines = {
        "status": _progress(record),
        "search space": _searched(record["space"]),
        "objective": ", ".join(f"{n} ({d})" for n, d in zip(record["objective"], record["directions"], strict=True)),
        "constraints": "\n".join(_constraint(name, bound, record) for name, bound in record["constraints"].items()),
        "run": _base_run(record),
        **{key: _named(record[key]) for key in ("sampler", "pruner") if record[key]},
        "trials": states(record["states"]),
        "used": _spent(record),
        "running": "\n".join(map(_worker, record["workers"])),
        "interruptions": _lost(record["interruptions"]),
        "failed": _counted(record["failures"]),
        "stopped early": _counted(record["stopped_early"]),
        "versions": _lines(
            [(key, ", ".join(f"{v} ({n:,})" for v, n in seen.items())) for key, seen in record["versions"].items()]
        ),
        "files": _files(record, storage),
    }
    format.pairs({name: text for name, text in lines.items() if text}, title=record["name"])
    if record["rows"]:
        format.console.print()
        compared(record["rows"], record["objective"][0])
    elif record["best"]:
        format.console.print()
        best(record["best"], record["objective"], record["states"]["COMPLETE"])
    elif record["broken"]:
        format.say("\nNo complete trial satisfies the constraints, so there is no best trial.")
    if record["importance"] and record["best"]:
        format.console.print()
        importance(record["importance"], record["name"], 8, storage)
    if record["best"] and record["budget"]:  # only studies of subnet-search have trials to train again
        several = len(record["best"]) > 1  # one trial of the front must be chosen
        which = [record["best"][0]["number"]] if several else []
        command = format.command("study extract", record["name"], *which, storage=storage, allow_import=record["imports"])
        format.say(f"\nExtract {'one' if several else 'it'} with: {command}")


def best(rows: Sequence[Row], names: Sequence[str], count: int) -> None:
    """Print the best trial, or the front among `count` complete trials."""
    if len(names) > 1:
        tables.front([{**row, **dict(zip(names, row["mean"], strict=True))} for row in rows], names, count)
        return
    (row,) = rows
    ends = dict(zip(("low", "high"), row["spread"][0], strict=True))
    over = {"seeds": f"{row['seeds']} (mean ± standard deviation, lowest to highest)"} if row["seeds"] > 1 else {}
    shown = {names[0]: _over_seeds(names[0], {"mean": row["mean"][0], "deviation": row["deviation"][0], **ends})}
    found, words, leading = {**row, **row["measured"]}, _words(row), leading_in(row)
    for key in (f"val_{leading}", f"test_{leading}", "density", *row["measured"], "steps", "seconds"):
        if key in shown or found[key] is None:
            continue
        if row["seeds"] == 1 or key in row["over_seeds"]:
            shown[key] = _over_seeds(key, row["over_seeds"][key]) if row["seeds"] > 1 else format.cell(key, found[key])
        else:  # of a version that did not store it
            shown[key] = f"{format.cell(key, found[key])} (seed {row['seed']} alone)"
    params = {key: format.cell("", value) for key, value in by_key(row["params"]).items() if row["seeds"] == 1 or key != "seed"}
    named = {words.get(key, _achieved(key, row["params"])): text for key, text in shown.items()}
    format.pairs(over | named | params, title=f"Best: trial {row['number']}")


def _over_seeds(key: str, values: Row) -> str:
    """Mean, deviation, lowest and highest value of a metric, if it has several values."""
    if values["deviation"] is None or values["low"] == values["high"]:
        low = values["low"]
        return format.cell(key, int(low) if key == "steps" and float(low).is_integer() else low)
    mean, deviation, low, high = (format.cell(key, values[one]) for one in ("mean", "deviation", "low", "high"))
    return f"{mean} ± {deviation} ({low} to {high})"


def _achieved(key: str, params: Row) -> str:
    """The name of a measured value next to the parameters, one of which can be the density asked for."""
    return f"achieved_{key}" if key in params else key


def compared(rows: Sequence[Row], name: str) -> None:
    """Print the results of the rows of a comparison."""
    ends = ("lowest", "highest")
    cells = [
        {**row["params"], "seeds": row["seeds"], "mean": format.cell(name, row["mean"][0])}
        | {end: format.cell(name, value) for end, value in zip(ends, row["spread"][0], strict=True)}
        for row in rows
    ]
    columns = {"method": "method", "density": "density", "seeds": "seeds", "mean": name}
    format.table(cells, columns | {end: end for end in ends}, repeat=2)


def trial(record: Row, name: str) -> None:
    """Print everything about one trial."""
    import yaml

    worker, passes, words = record["worker"] or {}, record.get("passes", {}), _words(record)
    shown = {
        **{key: record[key] for key in ("state", "reason")},
        **{words.get(key, key): format.cell(key, value) for key, value in record["objectives"].items()},
        **by_key(record["params"]),
        "achieved_density": record["density"] if "density" in record["params"] else None,
        **{
            words.get(key, key): tables.cell(key, value)
            for key, value in record.items()
            if key not in APART | record["objectives"].keys() | record["params"].keys() and value not in (None, {})
        },
        "violates": "\n".join(
            f"{key} {bound}, by {format.cell(key, record['constraints'][key])}" for key, bound in record["broken"].items()
        ),
        "passes": format.cell("", passes),
        "worker": " ".join(str(worker[key]) for key in ("host", "pid") if key in worker),
        "seeds": "\n".join(f"{one['seed']}: {format.cell('', one['values'])}" for one in record.get("seeds", ())),
        "repeated by": "\n".join(_repeat(one) for one in record.get("repeated", ())),
        "interruptions": "\n".join(f"{one['why']} ({one['host']} {one['pid']})" for one in record["interruptions"]),
        "intermediate values": ", ".join(f"{step}: {format.cell('', value)}" for step, value in record["reports"].items()),
    }
    title = f"Trial {record['number']} of {name}"
    format.pairs({key: value for key, value in shown.items() if value not in (None, "", {}, [])}, title=title)
    width = max(40, format.console.width - 40)  # yaml breaks a line after the item that exceeds it
    config = yaml.safe_dump(record["config"], sort_keys=False, default_flow_style=None, width=width) if record["config"] else ""
    for heading, text in (
        ("Configuration", config),
        ("End of the log", "\n".join(record["log"])),
        ("Traceback", record["traceback"]),
    ):
        if text:
            format.console.print(f"\n[bold]{heading}[/bold]")
            format.say(text.rstrip())


def diff_studies(record: Row) -> None:
    """Print a comparison of two studies."""
    pair, names = record["studies"], record["objective"]
    heads = {"a": pair[0]["name"], "b": pair[1]["name"]}
    lines = {
        "finished": [_finished(study) for study in pair],
        "trials": [states(study["states"]) for study in pair],
        "training steps": [f"{study['steps']:,}" for study in pair],
        "training time": [format.seconds(study["seconds"]) for study in pair],
    }
    if len(names) == 1:
        lines[f"best {names[0]}"] = [_best_of(study, names[0]) for study in pair]
        lines["reached the other's best"] = [_reached(study["reaches_the_others_best"]) for study in pair]
    else:
        lines["on the Pareto front"] = [f"{len(study['best'])} trials" for study in pair]
        lines["dominates of the other's"] = [f"{count} trials" for count in record["dominated"]]
    format.table([{"": key, "a": texts[0], "b": texts[1]} for key, texts in lines.items()], {"": "", **heads})
    for key, words in (("trials", "finished trials"), ("steps", "training steps")):
        if rows := record.get(f"at_equal_{key}"):
            format.console.print()
            cells = [{key: row[key], **{side: format.cell(names[0], row[side]) for side in heads}} for row in rows]
            format.table(cells, {key: f"after {words}", **heads}, title=f"Best so far ({names[0]}, one seed)")
    format.console.print()
    if not record["differences"]:
        format.say("The specifications are the same.")
        return
    cells = [{"key": one["key"], **{side: format.cell("", one[side]) for side in heads}} for one in record["differences"]]
    format.table(cells, {"key": "different keys", **heads})


def importance(record: Row, name: str, at_most: int | None = None, storage: str | None = None) -> None:
    """Print importances with bars, and a line with evaluator, number of trials and meaning."""
    head = f"Importance ({record['evaluator']}, {record['trials']:,} trials)"
    shares = list(record["importances"].items())
    format.prose(f"{head}: {record['meaning'] if shares else record['note']}")
    widest = max((len(param) for param, _ in shares[:at_most]), default=0)
    for param, share in shares[:at_most]:
        format.say(f"  {param:<{widest}}  {share:7.2%}  {'#' * round(20 * share)}".rstrip())
    if at_most and len(shares) > at_most:
        format.say(f"  and {len(shares) - at_most} more: {format.command('study importance', name, storage=storage)}")
    if record["left_out"]:
        format.prose(f"Left out, because not every trial has them: {', '.join(record['left_out'])}")
        format.prose("To include the parameters of one method, use its trials only: --filter extractor=rigl")
    if shares and record["note"]:
        format.prose(f"Note: {record['note']}")


def _lines(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and texts in two columns."""
    widest = max((len(name) for name, _ in pairs), default=0)
    return "\n".join(f"{name:<{widest}}  {text}" for name, text in pairs)


def _searched(space: Mapping[str, str]) -> str:
    """Keys with their domains, and in brackets their conditions."""
    parts = [(*key_and_condition(name), domain) for name, domain in space.items()]
    return _lines([(key, f"{domain} ({when})" if when else domain) for key, when, domain in parts])


def _counted(reasons: Mapping[str, int]) -> str:
    return "\n".join(f"{count:,} x {reason}" for reason, count in reasons.items())


def _of(budget: int | None) -> str:
    return f" of {budget:,}" if budget else ""


def _finished(record: Row) -> str:
    """The number of finished trials and the study's; `--trials` can have added some."""
    finished, budget = record["finished"], record["budget"]
    more = budget and finished > budget
    return f"{finished:,} trials (of the specification: {budget:,})" if more else f"{finished:,}{_of(budget)} trials"


def _progress(record: Row) -> str:
    more = {"repeated": "repeats", "imported": "imported", "withdrawn": "withdrawn"}
    extra = "".join(f", {record[key]:,} {word}" for key, word in more.items() if record[key])
    return f"{record['status']}: {_finished(record)}{extra}"


def _base_run(record: Row) -> str:
    """Keys of the base run that are set and not searched."""
    own = [] if record["rows"] else ["extractor"]  # rows have their own method
    keys = (*own, "network", "data", "task", "unit", "round_to", "target")
    parts = {key: record[key] for key in keys if record.get(key) and key not in record["space"]}
    return ", ".join(f"{key} {format.cell(key, value)}" for key, value in parts.items())


def _constraint(name: str, bound: str, record: Row) -> str:
    broken = record["broken"].get(name)
    return f"{name} {bound}" + (
        f" (violated by {broken:,} of {record['states']['COMPLETE']:,} complete trials)" if broken else ""
    )


def _named(options: Row) -> str:
    rest = ", ".join(f"{key} {format.cell('', value)}" for key, value in options.items() if key != "name")
    return f"{options['name']}{f' ({rest})' if rest else ''}"


def _spent(record: Row) -> str:
    elapsed = "" if record["elapsed"] is None else f", {format.seconds(record['elapsed'])} elapsed"
    steps = f"{record['steps']:,}{_of(record['budget_steps'])} training steps"
    return f"{steps}, {format.seconds(record['seconds'])} training time{elapsed}" if record["states"] else ""


def _files(record: Row, storage: str | None) -> str:
    """The study's folder on this machine, and what `study prune-files` would keep and remove of it."""
    if (files := record["files"]) is None:
        return ""
    kept, rest = (folders(files[key]) for key in ("kept", "not_kept"))
    command = format.command("study prune-files", record["name"], storage=storage)
    more = f"; {rest} of others (remove them with: {command})" if files["not_kept"]["folders"] else ""
    return f"{files['folder']}: {kept} of the best and of unfinished trials{more}"


def folders(count: Mapping[str, int]) -> str:
    """A number of run folders, with the size of their files."""
    many = "" if count["folders"] == 1 else "s"
    return f"{count['folders']:,} run folder{many} ({format.size(count['bytes'])})"


def _worker(worker: Row) -> str:
    where = f"{worker['host']} {worker['pid']}" if worker["pid"] else "unknown worker"
    last = f", last {format.cell('', worker['last'])}" if "last" in worker else ""
    return f"{where}: trial {worker['trial']}{last}{'; the worker is dead' if worker['gone'] else ''}"


def _lost(record: Row) -> str:
    if not record["times"]:
        return ""
    died = f", {record['died']:,} by the death of a worker" if record["died"] else ""
    return f"{record['times']:,} in {record['trials']:,} trials{died}; {record['ended']:,} of these trials have finished since"


def _repeat(one: Row) -> str:
    return f"trial {one['number']}: {one['state'] if one['values'] is None else format.cell('', one['values'])}"


def _best_of(study: Row, name: str) -> str:
    if not study["best"]:
        return "-"
    best = study["best"][0]
    seeds = f", {best['seeds']} seeds" if best["seeds"] > 1 else ""
    return f"{format.cell(name, best['mean'][0])} (trial {best['number']}{seeds})"


def _reached(work: Mapping[str, int] | None) -> str:
    return f"after {work['trials']:,} trials, {work['steps']:,} steps" if work else "never"
