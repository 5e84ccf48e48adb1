"""What a report says about a study or a comparison."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import TrialState

from subnet_search.analysis.plots import COLOURS, need_plotly
from subnet_search.core.errors import RunError, UserError
from subnet_search.core.task_metrics import in_words, is_fraction
from subnet_search.reports.html_page import Column, Section
from subnet_search.search.queries.importance import importance
from subnet_search.search.queries.queries import ranked_row
from subnet_search.search.queries.study_summary import summarise_study
from subnet_search.search.queries.trial_table import flat_rows
from subnet_search.search.storage.ranking import best_ranked, objectives
from subnet_search.search.storage.read import Snapshot
from subnet_search.search.storage.records import TrialRecord, task_metrics

AT_MOST = 2_000  # trials in the table and the plots of parameters


def study_column(study: Snapshot) -> Column:
    """Best trials, plots, failures and all trials of a study. Also of a study without a complete trial."""
    record, trials = summarise_study(study), study.get_trials()
    names, metrics = objectives(study), task_metrics(study)
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    states = ", ".join(f"{count} {state}" for state, count in record["states"].items()) or "no trials yet"
    best = [ranked_row(ranked, metrics) for ranked in best_ranked(study)] if complete else []
    return Column(
        record["name"], f"{record['status']}; {states}", list(_answer(best, names)), list(_sections(study, record, names, best))
    )


def _answer(best: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Iterator[tuple[str, str]]:
    if len(best) == 1:
        row = best[0]
        for name, mean, (low, high) in zip(names, row["mean"], row["spread"], strict=True):
            over = f", mean of {row['seeds']} seeds ({_number(name, low)} to {_number(name, high)})" if row["seeds"] > 1 else ""
            yield f"best {_words(name)}{over}", _number(name, mean)
        yield "trial", str(row["number"])
    elif best:
        yield "trials on the Pareto front", str(len(best))


def _sections(
    study: Snapshot, record: Mapping[str, Any], names: Sequence[str], best: Sequence[Mapping[str, Any]]
) -> Iterator[Section]:
    trials = study.get_trials()
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    if not complete:
        yield Section("No result", "No trial of this study is complete, so there are no plots.")
    else:
        rows = [
            {"number": row["number"], **dict(zip(names, row["mean"], strict=True)), "seeds": row["seeds"], **row["params"]}
            for row in best
        ]
        yield Section("Best" if len(best) == 1 else "Pareto front", rows=[_linked(row) for row in rows])
        yield _front(study, complete, names)
        one = len(names) == 1
        target = None if one else _first
        seen = Snapshot(study, trials[-AT_MOST:])
        searched = {key for trial in complete for key in trial.params}
        draw = optuna.visualization
        if one:
            yield _plot("Optimisation history", "", lambda: draw.plot_optimization_history(seen))
        if searched and not record["rows"]:
            yield _plot(
                "Parallel coordinates", "", lambda: draw.plot_parallel_coordinate(seen, target=target, target_name=names[0])
            )
            yield _importance(study, names)
            yield _plot(
                "Slices", "Each plot has one parameter.", lambda: draw.plot_slice(seen, target=target, target_name=names[0])
            )
    if record["failures"]:
        yield Section("Failures", rows=[{"reason": reason, "trials": count} for reason, count in record["failures"].items()])
    if timed := [trial for trial in trials if TrialRecord(trial).seconds]:
        yield Section("Time by trial", figure=_times(timed))
    table = flat_rows(Snapshot(study, trials[-AT_MOST:]))
    shown = f"The newest {AT_MOST} of {len(trials)} trials." if len(trials) > AT_MOST else ""
    keys = list(
        dict.fromkeys(
            key for row in table for key, value in row.items() if value is not None and key not in ("sha256", "folder")
        )
    )
    if table:
        yield Section("Trials", shown, rows=[{key: row.get(key) for key in keys} for row in table], sortable=True)
    yield Section(
        "How to continue",
        code=f"subnet-search study run {record['name']}\nsubnet-search study extract {record['name']} --best",
        open=True,
    )


def _front(study: Snapshot, complete: Sequence[optuna.trial.FrozenTrial], names: Sequence[str]) -> Section:
    """The first objective over the density, a colour for each method."""
    figure = need_plotly().graph_objects.Figure()
    rows = [row for row in flat_rows(Snapshot(study, list(complete))) if row.get("density") is not None]
    name = names[0]
    values = {trial.number: trial.values[0] for trial in complete}
    methods = dict.fromkeys(str(row.get("method") or row.get("extractor") or "") for row in rows)
    for index, method in enumerate(methods):
        own = [row for row in rows if str(row.get("method") or row.get("extractor") or "") == method]
        hover = f"trial %{{customdata[0]}}<br>density %{{x:.4g}}<br>{_words(name)} %{{y:.4g}}<extra>{_escaped(method)}</extra>"
        figure.add_scatter(
            x=[row.get("achieved_density") or row["density"] for row in own],
            y=[values[row["number"]] for row in own],
            customdata=[[row["number"]] for row in own],
            mode="markers",
            name=_escaped(method) or "trials",
            marker={"color": COLOURS[index % len(COLOURS)], "size": 9},
            hovertemplate=hover,
        )
    figure.update_xaxes(title="density (fraction of weights kept, log scale)", type="log")
    figure.update_yaxes(title=_words(name), tickformat=".1%" if is_fraction(name) else None)
    return Section(
        "Accuracy and density" if "accuracy" in name else f"{_words(name)} and density",
        "Click on a point to find its trial in the table.",
        figure,
    )


def _importance(study: Snapshot, names: Sequence[str]) -> Section:
    try:
        found = importance(study)
    except UserError as error:
        return Section("Importance", str(error))
    if not found["importances"]:
        return Section("Importance", f"{found['evaluator']}: {found['note']}.")
    shares = sorted(found["importances"].items(), key=lambda item: item[1])
    figure = need_plotly().graph_objects.Figure()
    figure.add_bar(x=[share for _, share in shares], y=[name for name, _ in shares], orientation="h", marker_color=COLOURS[0])
    figure.update_xaxes(title="share", tickformat=".0%")
    figure.update_layout(height=max(260, 24 * len(shares) + 110), showlegend=False)
    text = (
        f"{found['evaluator']}, {found['trials']} trials: {found['meaning']}. The dashboard "
        "shows fANOVA's shares of all trials, so its numbers differ."
    )
    return Section("Importance", text, figure)


def _plot(title: str, text: str, draw: Callable[[], Any]) -> Section:
    try:
        return Section(title, text, draw())
    except (ValueError, RuntimeError, KeyError) as error:  # Optuna's plots refuse some studies
        return Section(title, f"Not drawn: {error}")


def _times(trials: Sequence[optuna.trial.FrozenTrial]) -> Any:
    figure = need_plotly().graph_objects.Figure()
    states = Counter(trial.state.name for trial in trials)
    for index, state in enumerate(states):
        own = [trial for trial in trials if trial.state.name == state]
        figure.add_bar(
            x=[t.number for t in own], y=[TrialRecord(t).seconds for t in own], name=state, marker_color=COLOURS[index]
        )
    figure.update_xaxes(title="trial")
    figure.update_yaxes(title="seconds of training")
    return figure


def _first(trial: optuna.trial.FrozenTrial) -> float:
    if not trial.values:
        raise RunError(f"trial {trial.number} has no value")
    return float(trial.values[0])


def _linked(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row whose number is not an anchor: the table of all trials has it."""
    return {"trial" if key == "number" else key: value for key, value in row.items()}


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;")


def _words(name: str) -> str:
    """An objective's name for people."""
    return in_words(name.removeprefix("val_"), "validation") if name.startswith("val_") else in_words(name)


def _number(name: str, value: float) -> str:
    return f"{value:.2%}" if is_fraction(name) else f"{value:.4g}"
