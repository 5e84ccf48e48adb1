"""Studies and trials as people read them: what the commands of look.py print."""

import csv as csv_files
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from subnet_search.cli import show

if TYPE_CHECKING:
    import optuna

Row = Mapping[str, Any]

AT_MOST = 20  # points of a front on a page
FIRST = ("number", "state")  # columns of every table of trials
GAP = 2  # between columns


def states(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {state}" for state, count in counts.items()) or "none"


def overview(record: Row) -> None:
    """A study on one page."""
    show.pairs(
        {
            "state": _progress(record),
            "searched over": _lines(record["space"]),
            "for": ", ".join(f"{n} ({d})" for n, d in zip(record["objective"], record["directions"], strict=True)),
            **_said("keeping", ", ".join(f"{name} {bound}" for name, bound in record["constraints"].items())),
            **_said("run", _run(record)),
            **{key: _named(record[key]) for key in ("sampler", "pruner") if record[key]},
            "trials": states(record["states"]),
            "spent": _spent(record),
            **_said("at work", "\n".join(map(_at_work, record["workers"]))),
            **_said("lost workers", _lost(record["interruptions"])),
            **_said("failed", _lines(record["failures"], "{1} x {0}")),
            **_said("stopped early", _lines(record["stopped_early"], "{1} x {0}")),
            **_said("versions", _lines({key: states(found) for key, found in record["versions"].items()})),
        },
        title=record["name"],
    )
    if record["best"]:
        show.console.print()
        best(record["best"], record["objective"])
    if record["importance"] and record["finished"]:
        show.console.print()
        importance(record["importance"], 8)
    if record["best"]:
        _plain(f"\nGet it: subnet-search study extract {record['name']}")


def best(rows: Sequence[Row], names: Sequence[str]) -> None:
    """The best trial, or a front as a table."""
    if len(rows) > 1:
        cells = [
            {**row["params"], "seeds": row["seeds"], "number": row["number"], **dict(zip(names, row["mean"], strict=True))}
            for row in rows
        ]
        _front(cells, names, len(rows), seeds=any(row["seeds"] > 1 for row in rows), params=_keys(rows))
        return
    for row in rows:
        found = {name: show.cell(name, mean) for name, mean in zip(names, row["mean"], strict=True)}
        if row["seeds"] > 1:
            for name, (low, high) in zip(names, row["spread"], strict=True):
                found[name] += f", the mean of {row['seeds']} seeds ({show.cell(name, low)} to {show.cell(name, high)})"
        more = ("val_accuracy", "test_accuracy", "density", "steps", "seconds")
        found |= {key: show.cell(key, row[key]) for key in more if key not in found and row[key] is not None}
        words = {"val_accuracy": "validation accuracy", "test_accuracy": "test accuracy"}
        params = {key: show.cell("", value) for key, value in row["params"].items()}
        show.pairs({words.get(k, k): text for k, text in found.items()} | params, title=f"Best: trial {row['number']}")


def trial(record: Mapping[str, Any], name: str) -> None:
    """Everything about one trial."""
    import yaml

    left = dict(record)
    config, log, trace = left.pop("config"), left.pop("log"), left.pop("traceback")
    past, repeated, seeds = left.pop("interruptions"), left.pop("repeated", []), left.pop("seeds", [])
    reports = left.pop("reports")
    for key in ("number", "values", "last", "constraints", *left["objectives"]):
        if key not in ("constraints",) or not left[key]:
            left.pop(key, None)
    first = {"state": left.pop("state"), "reason": left.pop("reason"), **left.pop("objectives"), **left.pop("params")}
    worker = left.pop("worker") or {}
    shown = {
        **first,
        **left,
        "worker": " ".join(str(worker[key]) for key in ("host", "pid") if key in worker),
        "repeated by": "\n".join(f"trial {one['number']}: {show.cell('', one['values'])} {one['state']}" for one in repeated),
        "seeds": "\n".join(f"{one['seed']}: {show.cell('', one['values'])}" for one in seeds),
        "interruptions": "\n".join(f"{one['why']} ({one['host']} {one['pid']})" for one in past),
        "reported": ", ".join(f"{step}: {show.cell('', value)}" for step, value in reports.items()),
    }
    show.pairs(
        {key: value for key, value in shown.items() if value not in (None, "", {}, [])},
        title=f"Trial {record['number']} of {name}",
    )
    if config:
        show.console.print("\n[bold]Configuration[/bold]")
        _plain(yaml.safe_dump(config, sort_keys=False, default_flow_style=None, width=show.console.width).rstrip())
    for title, text in (("The end of its log", "\n".join(log)), ("Traceback", trace)):
        if text:
            show.console.print(f"\n[bold]{title}[/bold]")
            _plain(text.rstrip())


def versus(record: Row) -> None:
    """Two studies side by side."""
    one, other = record["studies"]
    a, b = one["name"], other["name"] if other["name"] != one["name"] else f"{other['name']} "
    lines = [
        ("trials", [f"{s['finished']:,} of {s['budget'] or '?'}: {states(s['states'])}" for s in (one, other)]),
        ("training steps", [f"{s['steps']:,}" for s in (one, other)]),
        ("training time", [show.seconds(s["seconds"]) for s in (one, other)]),
    ]
    names = record["objective"]
    if len(names) == 1:
        lines += [
            (f"best {names[0]}", [_best_of(s, names[0]) for s in (one, other)]),
            ("reaches the other's best", [_reached(s["reaches_the_others_best"]) for s in (one, other)]),
        ]
    else:
        lines += [
            ("trials on its front", [str(len(s["best"])) for s in (one, other)]),
            ("dominates of the other's", [str(count) for count in record["dominated"]]),
        ]
    show.table([{"": key, "a": texts[0], "b": texts[1]} for key, texts in lines], {"": "", "a": a, "b": b})
    for key, words in (("trials", "finished trials"), ("steps", "training steps")):
        if rows := record.get(f"at_equal_{key}"):
            show.console.print()
            cells = [{key: row[key], **{s: show.cell(names[0], row[s]) for s in "ab"}} for row in rows]
            show.table(cells, {key: f"after {words}", "a": a, "b": b}, title=f"Best so far, one seed each: {names[0]}")
    if record["differences"]:
        show.console.print()
        cells = [
            {k: v if k == "key" else "-" if v is None else str(v) for k, v in row.items()} for row in record["differences"]
        ]
        show.table(cells, {"key": "set differently", "a": a, "b": b})
    else:
        show.console.print("\nThey search the same.")


def front(rows: Sequence[Row], names: Sequence[str], study: "optuna.Study") -> None:
    """The points on a front, and how many are not."""
    ahead = [{**row["params"], **row} for row in rows if row["front"]]
    bounded = not all(row["feasible"] for row in rows)
    _front(ahead, names, len(rows), seeds=any(row["seeds"] > 1 for row in ahead), params=_keys(ahead), bounded=bounded)


def importance(record: Row, at_most: int | None = None) -> None:
    """Shares with bars, and in a line what they mean."""
    _plain(f"Importance by {record['evaluator']}, N = {record['trials']:,}: {record['meaning']}")
    shares = list(record["importances"].items())
    widest = max((len(name) for name, _ in shares[:at_most]), default=0)
    for name, share in shares[:at_most]:
        _plain(f"  {name:<{widest}}  {share:7.2%}  {'#' * round(20 * share)}")
    if at_most and len(shares) > at_most:
        _plain(f"  and {len(shares) - at_most} more: subnet-search study importance")
    if record["left_out"]:
        _plain(f"left out, since not all trials have them (look at a branch with --filter): {', '.join(record['left_out'])}")
    if record["note"]:
        _plain(record["note"])


def trials(rows: Sequence[Row], study: "optuna.Study", wanted: Sequence[str] | None) -> None:
    """A table of trials: the columns asked for, or as many as fit."""
    from subnet_search.search.inspect import objectives, parameters

    if not rows:
        _plain("no such trials" if study.get_trials(deepcopy=False) else "no trials yet")
        return
    params = dict.fromkeys(key.partition(" @")[0] for t in study.get_trials(deepcopy=False) for key in parameters(t))
    usual = [*FIRST, *objectives(study), "density", "feasible", "repeats", "seconds", "reason", *params]
    columns = wanted or [key for key in dict.fromkeys(usual) if any(row.get(key) is not None for row in rows)]
    left_out = wide(rows, columns, None if wanted else show.console.width)
    if left_out:
        _plain(f"\n{len(rows):,} trials; too narrow for {', '.join(left_out)} (--columns, --csv)")


def wide(rows: Sequence[Row], columns: Sequence[str], width: int | None) -> list[str]:
    """Print a table of thousands of rows at once; returns the columns for which `width` has no room."""
    short = [column.rpartition(".")[2] for column in columns]
    headings = {c: s if short.count(s) == 1 and s not in columns else c for c, s in zip(columns, short, strict=True)}
    cells = {column: [show.cell(column, row.get(column)) for row in rows] for column in columns}
    room, lines, left_out = width or sys.maxsize, [""] * (len(rows) + 1), []
    for column in columns:
        texts = [headings[column], *cells[column]]
        if column == "reason" and width:  # a long one gives way
            texts = [text if len(text) <= 30 else f"{text[:29]}…" for text in texts]
        size = max(map(len, texts))
        if size > room:
            left_out.append(headings[column])
            continue
        room -= size + GAP
        right = any(isinstance(row.get(column), int | float) for row in rows)
        lines = [
            f"{line}{text:>{size}}  " if right else f"{line}{text:<{size}}  " for line, text in zip(lines, texts, strict=True)
        ]
    sys.stdout.write("".join(f"{line.rstrip()}\n" for line in lines))
    return left_out


def csv(rows: Iterable[Row], columns: Sequence[str]) -> None:
    """Comma-separated values, as they are; empty where there is none."""
    writer = csv_files.DictWriter(sys.stdout, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


def json_rows(rows: Iterable[Row]) -> None:
    """A JSON list with a line for every row: quick also for thousands."""
    sys.stdout.write("[\n" + ",\n".join(json.dumps(row, default=str) for row in rows) + "\n]\n")


def _plain(text: str) -> None:
    show.console.print(text, markup=False, soft_wrap=True)


def _lines(values: Mapping[str, Any], form: str = "{0}  {1}") -> str:
    widest = max(map(len, values), default=0) if form[1] == "0" else 0
    return "\n".join(form.format(f"{key:<{widest}}", value) for key, value in values.items())


def _said(name: str, text: str) -> dict[str, str]:
    """A line of a page, if there is something to say."""
    return {name: text} if text else {}


def _progress(record: Row) -> str:
    of = f" of {record['budget']:,}" if record["budget"] else ""
    more = {"repeated": "repeats", "imported": "imported", "withdrawn": "withdrawn"}
    extra = "".join(f", {record[key]:,} {word}" for key, word in more.items() if record[key])
    return f"{record['status']}: {record['finished']:,}{of} trials finished{extra}"


def _run(record: Row) -> str:
    words = (record["network"] or "the default network", record["data"] or "the default data")
    method = None if "extractor" in record["space"] else record["extractor"]
    return f"{method or 'methods'} on {' and '.join(words)}" if record["network"] or record["data"] or method else ""


def _named(options: Row) -> str:
    rest = ", ".join(f"{key} {show.cell('', value)}" for key, value in options.items() if key != "name")
    return f"{options['name']}{f' ({rest})' if rest else ''}"


def _spent(record: Row) -> str:
    of = f" of {record['budget_steps']:,}" if record["budget_steps"] else ""
    elapsed = "" if record["elapsed"] is None else f", {show.seconds(record['elapsed'])} from first to last"
    return f"{record['steps']:,}{of} training steps, {show.seconds(record['seconds'])} of training{elapsed}"


def _at_work(worker: Row) -> str:
    where = f"{worker['host']} {worker['pid']}" if worker["pid"] else "a worker"
    gone = " is gone (the next worker takes it over)" if worker["gone"] else ""
    last = f", last {show.cell('', worker['last'])}" if "last" in worker else ""
    return f"{where}{gone}: trial {worker['trial']}{last}"


def _lost(record: Row) -> str:
    if not record["times"]:
        return ""
    died = f", {record['died']} of them a worker's death" if record["died"] else ""
    return f"{record['trials']} trials went on after losing their worker ({record['times']} times{died}); {record['ended']} have finished"


def _front(
    rows: Sequence[Row], names: Sequence[str], count: int, seeds: bool, params: Sequence[str], bounded: bool = False
) -> None:
    """The points of a front as a table; those beyond a page are counted."""
    extra = [*(["seeds"] if seeds else []), *(["feasible"] if bounded else [])]
    left_out = wide(rows[:AT_MOST], ["number", *names, *extra, *params], show.console.width)
    beyond = f", the first {AT_MOST} here" if len(rows) > AT_MOST else ""
    narrow = f"; too narrow for {', '.join(left_out)}" if left_out else ""
    on = f"{len(rows)} of {count:,} complete trials are" if count > len(rows) else f"{len(rows)} trials"
    _plain(f"\n{on} on the Pareto front{beyond}{narrow}")


def _keys(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(key for row in rows for key in row["params"]))


def _best_of(study: Row, name: str) -> str:
    if not study["best"]:
        return "-"
    best = study["best"][0]
    return (
        f"{show.cell(name, best['mean'][0])} (trial {best['number']}, {best['seeds']} seed{'s' if best['seeds'] > 1 else ''})"
    )


def _reached(work: Mapping[str, int] | None) -> str:
    return f"after {work['trials']:,} trials, {work['steps']:,} steps" if work else "no"
