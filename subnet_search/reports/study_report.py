"""What a report says about a study or a comparison."""

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from subnet_search.core.errors import UserError, reason
from subnet_search.core.numbers_as_text import cell, seconds
from subnet_search.extractors import extractor_names, get_extractor
from subnet_search.reports.html_page import Column, Section
from subnet_search.search.queries import study_figures
from subnet_search.search.queries.study_figures import words
from subnet_search.search.queries.study_summary import summarise_study
from subnet_search.search.queries.trial_table import Row, columns_of, flat_rows
from subnet_search.search.storage.ranking import objectives
from subnet_search.search.storage.read import Snapshot
from subnet_search.search.storage.records import TrialRecord, plain_spec, task_metrics
from subnet_search.search.studies.convergence import too_short_in
from subnet_search.training import Recipe

AT_MOST = 2_000  # trials in the table and the plots
FIRST, LAST = ("number", "state", "method", "extractor"), ("seed", "steps", "seconds", "reason", "imported")
LEFT_OUT = {"sha256", "folder", "key", "beat", "token", "worker", "last", "reported", "started", "completed", "arm"}
DASHBOARD = (
    "optuna-dashboard shows another evaluator's shares, those of fANOVA: the variance that a parameter explains over all "
    "trials, the bad ones included, and only of parameters that all trials have; so its numbers differ."
)
NO_REASON = {"None": "no reason was stored"}
NO_RESULT = "No trial of this study is complete, so there are no plots."


def study_column(study: Snapshot) -> Column:
    """Best trials, plots, failures and all trials of a study.

    Without a complete trial, the page has the reasons of the failures and the trials.
    """
    record, names = summarise_study(study), objectives(study)
    newest = Snapshot(study, study.get_trials()[-AT_MOST:])
    complete = Snapshot(study, [trial for trial in newest.get_trials() if trial.state.name == "COMPLETE"])
    states = ", ".join(f"{count:,} {state.lower()}" for state, count in record["states"].items()) or "no trials yet"
    where = ", ".join(f"{key} {record[key]}" for key in ("network", "data") if record[key])
    return Column(
        record["name"],
        "; ".join(part for part in (where, record["status"], states) if part),
        list(_answer(record, names)),
        [*_results(study, complete, record, names), *_trials(newest, record, len(study.get_trials()))],
        plain_spec(study),
        study,
    )


def _answer(record: Mapping[str, Any], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    best = record["best"]
    if len(names) > 1 and best:
        yield "trials on the Pareto front", str(len(best))
    elif best:
        row, name = best[0], names[0]
        over = ""
        if row["seeds"] > 1:
            low, high = (cell(name, value) for value in row["spread"][0])
            over = f", mean of {row['seeds']} seeds, {low} to {high}"
        yield f"best {words(name)}{over}", cell(name, row["mean"][0])
        for key, found in row["over_seeds"].items():
            if key.startswith("test_"):
                spread = f", {cell(key, found['low'])} to {cell(key, found['high'])}" if found["seeds"] > 1 else ""
                yield f"its {words(key)}{spread}", cell(key, found["mean"])
        if row["density"] is not None:
            yield "its density", cell("density", row["density"])
        yield "its number", f"trial {row['number']}"
    budget, finished = record["budget"], record["finished"]
    yield "finished trials" + (f" of {budget:,}" if budget and budget >= finished else ""), f"{finished:,}"
    yield "of training", seconds(record["seconds"])


def _results(study: Snapshot, complete: Snapshot, record: Mapping[str, Any], names: Sequence[str]) -> Iterator[Section]:
    if not complete.trials:
        yield Section("No result", NO_RESULT)
        return
    yield from _best(study, record, names)
    if record["rows"]:
        yield _recipes(complete)
    rows = [row for row in flat_rows(complete) if row.get("density") and row["density"] > 0 and row[names[0]] is not None]
    if rows:
        title = "Accuracy and density" if "accuracy" in names[0] else f"{words(names[0])} and density".capitalize()
        yield _plot(title, "A click on a point finds its trial.", lambda: study_figures.over_density(complete, rows, names))
    for index, name in enumerate(names):
        if record["rows"]:  # a comparison does not search
            break
        title = "Optimisation history" + (f": {words(name)}" if len(names) > 1 else "")
        yield _plot(title, "", lambda index=index: study_figures.history(study, names, index))  # type: ignore[misc]
    if not record["rows"] and any(trial.params for trial in complete.trials):
        count, most = len(complete.trials), study_figures.LINES
        some = f" Of {count:,} trials, {most} or fewer are drawn, from the best to the worst." if count > most else ""
        text = f"The parameters that all complete trials have; the best trials are orange.{some}"
        yield _plot("Parallel coordinates", text, lambda: study_figures.parallel(complete, names))
        yield _importance(record["importance"])
        text = f"The {words(names[0])} over each parameter."
        yield _plot("Slices", text, lambda: study_figures.slices(complete, names))


def _best(study: Snapshot, record: Mapping[str, Any], names: Sequence[str]) -> Iterator[Section]:
    """The rows of a comparison, the front of several objectives, or the best trial."""
    compared, best = record["rows"], record["best"]
    if not best:
        bounds = ", ".join(f"{name} {bound}" for name, bound in record["constraints"].items())
        yield Section("No best trial", f"No complete trial satisfies the constraints ({bounds}).")
    elif compared or len(names) > 1:
        shown = [
            key for key in (*names, task_metrics(study).test) if key in (compared or best)[0]["over_seeds"] or key in names
        ]
        rows = [
            {
                "trial": row["number"],
                **{key: value for key, value in row["params"].items() if key != "seed"},
                **_over_seeds(row, names, shown),
            }
            for row in compared or best
        ]
        keys = columns_of(rows)
        title = "Methods and densities, best first" if compared else "Pareto front"
        text = (
            "Mean over the seeds, and the lowest and the highest." if any(row["seeds"] > 1 for row in compared or best) else ""
        )
        yield Section(title, text, rows=[{key: row.get(key) for key in keys} for row in rows])
    else:
        row = best[0]
        values = {"trial": row["number"], **dict(zip(names, row["mean"], strict=True)), **row["measured"], **row["params"]}
        yield Section(
            "Best trial",
            rows=[{"name": key, "value": value if key == "trial" else cell(key, value)} for key, value in values.items()],
        )


def _recipes(complete: Snapshot) -> Section:
    """The training settings of a comparison's methods, and whether its epochs were too few. No method is imported."""
    shared, methods = plain_spec(complete)["run"].get("recipe", {}), dict[str, dict[str, None]]()
    for trial in complete.trials:
        if cell := TrialRecord(trial).cell:
            own = {key.removeprefix("recipe."): value for key, value in cell.values.items() if key.startswith("recipe.")}
            name = cell.values["extractor"]["name"]
            published = get_extractor(name).published.recipe if name in extractor_names() else {}
            known = published or ":" not in name or "lr" in {**shared, **own}
            text = Recipe.model_validate({**published, **shared, **own}).summary() if known else "its published settings"
            methods.setdefault(text, {})[cell.method] = None
    epochs = shared.get("epochs", Recipe().epochs)
    short = too_short_in(complete.trials, epochs, task_metrics(complete))
    rows = [{"methods": ", ".join(names), "epochs": epochs, "recipe": text} for text, names in methods.items()]
    return Section("Recipe", f"{short[0].upper()}{short[1:]}." if short else "", rows=rows)


def _over_seeds(row: Mapping[str, Any], names: Sequence[str], shown: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key in shown:
        index = names.index(key) if key in names else None
        values = row["over_seeds"].get(key) or {}
        found[key] = row["mean"][index] if index is not None else values.get("mean")
        if row["seeds"] > 1:
            low, high = row["spread"][index] if index is not None else (values.get("low"), values.get("high"))
            found[f"{key}: range"] = f"{cell(key, low)} to {cell(key, high)}"
    return {**found, "seeds": row["seeds"]}


def _importance(found: Mapping[str, Any]) -> Section:
    if not found["importances"]:
        return Section("Importance", f"{found['evaluator']}: {found['note']}.")
    note = f" Note: {found['note']}." if found["note"] else ""
    text = f"{found['evaluator']}, {found['trials']:,} complete trials: {found['meaning']}.{note} {DASHBOARD}"
    return _plot("Importance", text, lambda: study_figures.bars(found["importances"]))


def _trials(newest: Snapshot, record: Mapping[str, Any], count: int) -> Iterator[Section]:
    for title, key in (("Failures", "failures"), ("Stopped early", "stopped_early")):
        if reasons := record[key]:
            yield Section(
                title, rows=[{"reason": NO_REASON.get(why, why), "trials": number} for why, number in reasons.items()]
            )
    if timed := [trial for trial in newest.trials if TrialRecord(trial).seconds]:
        yield Section("Time by trial", "A click on a bar finds its trial.", study_figures.times(timed))
    table = flat_rows(newest)
    if table:
        keys = [key for key in columns_of(table) if key not in LEFT_OUT and not _always_zero(table, key)]
        shown = f"The newest {AT_MOST:,} of {count:,} trials. " if count > AT_MOST else ""
        text = shown + "A click on a heading sorts. The filter takes words and comparisons, such as: complete density<0.1"
        keys.sort(key=lambda key: (*(name == key for name in LAST), *(name != key for name in FIRST)))
        rows = [{key: row.get(key) for key in keys} for row in table]
        yield Section("Trials", text, rows=rows, sortable=True)
    if plain_spec(newest):  # of a study of this package
        name = shlex.quote(record["name"])
        again = "" if not plain_spec(newest)["space"] else f"subnet-search study run {name}\n"
        yield Section("How to continue", code=f"{again}subnet-search study extract {name} --best", open=True)


def _always_zero(table: Sequence[Row], key: str) -> bool:
    return key == "interruptions" and not any(row.get(key) for row in table)


def _plot(title: str, text: str, draw: Callable[[], Any]) -> Section:
    try:
        return Section(title, text, draw())
    except (UserError, ValueError, RuntimeError, KeyError) as error:  # Optuna's plots refuse some studies
        return Section(title, f"Not drawn: {reason(error)}.")
