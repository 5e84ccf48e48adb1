"""The parts of an evaluation as text: intervals, calibration, robustness, and the comparison with another network."""

from collections.abc import Mapping
from typing import Any

from subnet_search.cli.render import format
from subnet_search.core.task_metrics import in_words, is_fraction, leading_in

CLASSES = 3  # of those that lost most, and of the least accurate


def interval(name: str, bounds: Mapping[str, float] | None) -> str:
    """The interval of a metric, to be written after its value."""
    if bounds is None:
        return ""
    low, high = (format.cell(name, bounds[key]).removesuffix(" %") for key in ("low", "high"))
    return f" (95 % interval {low} to {high})"


def calibration(record: Mapping[str, Any]) -> str:
    """The calibration error, and whether the network is too sure or not sure enough."""
    rows = record.get("calibration", [])
    confidence = sum(row["confidence"] * row["count"] for row in rows) / max(1, record["items"])
    return f"{format.percent(record['ece'])} (mean confidence {format.percent(confidence)})"


def worst_classes(record: Mapping[str, Any]) -> str:
    """The classes with the lowest accuracy."""
    known = {index: value for index, value in enumerate(record["class_accuracy"]) if value is not None}
    worst = sorted(known, key=lambda index: known[index])[:CLASSES]
    return ", ".join(f"{index}: {format.percent(known[index])}" for index in worst)


def more(record: Mapping[str, Any]) -> None:
    """Print what an evaluation has beside metrics and latency."""
    if "against" in record:
        format.console.print()
        against(record)
    if "ensemble" in record:
        format.console.print()
        ensemble(record["ensemble"])
    if "noise" in record:
        format.console.print()
        known = [key for key in ("agreement", "distance") if record["noise"][0][key] is not None]
        headings = {"level": "noise", "accuracy": "accuracy", **{key: key for key in known}}
        rows = [{**row, **{key: format.percent(row["agreement"]) for key in known[:1]}} for row in record["noise"]]
        format.table(rows, headings, title="Under uniform noise")
    if "corruptions" in record:
        format.console.print()
        corruptions(record)


def against(record: Mapping[str, Any]) -> None:
    """Print the comparison with another network."""
    other, leading = record["against"], leading_in(record)
    rows = {
        in_words(leading): f"{format.cell(leading, record[leading])}, the other {format.cell(leading, other[leading])}",
        "difference": _signed(leading, other["difference"]),
    }
    if "interval" in other:
        low, high = (_signed(leading, other["interval"][key]) for key in ("low", "high"))
        rows["difference"] += f" (95 % interval {low} to {high})"
        rows["test"] = _test(other["test"])
    if "agreement" in other:
        rows["equal predictions"] = format.percent(other["agreement"])
        if other["distance"] is not None:
            rows["functional distance"] = f"{other['distance']:.4f} (L2 norm of the difference of probabilities)"
        lost = [row for row in other["classes"][:CLASSES] if row["difference"] < 0]
        rows["classes that lost most"] = (
            ", ".join(f"{row['class']}: {_signed(leading, row['difference'])}" for row in lost) or "none"
        )
    format.pairs(rows, title=f"Against {other['name']}, on the same items")


def readout(found: Mapping[str, Any]) -> dict[str, str]:
    """How the last layer, or the linear layers, were solved."""
    chosen = ", chosen on held-out training data" if found["chosen"] else ""
    layers = ", ".join(found.get("layers", [found["layer"]]))
    return {"readout": f"{layers} by ridge regression on {found['items']:,} items, penalty {found['penalty']:.3g}{chosen}"}


def ensemble(found: Mapping[str, Any]) -> None:
    """Print the metrics of an ensemble beside those of one network, and what it costs."""
    leading = next(iter(found["metrics"]))
    shown = [name for name in dict.fromkeys([leading, "nll", "ece"]) if name in found["metrics"]]
    columns = {
        "the subnetwork": found["single"],
        **({"its batch norm anew": found["recomputed"]} if found["recomputed"] else {}),
        **({"mean of the weights": found["mean_weights"]} if found["mean_weights"] else {}),
        "members, mean": {name: found["each"][name]["mean"] for name in shown},
        "lowest": {name: found["each"][name]["low"] for name in shown},
        "highest": {name: found["each"][name]["high"] for name in shown},
        "the ensemble": found["metrics"],
    }
    table = [
        {"metric": in_words(name), **{key: format.cell(name, values[name]) for key, values in columns.items()}}
        for name in shown
    ]
    samples = f", from {found['samples']} samples" if found["samples"] else ""
    title = f"Ensemble of {found['members']} networks with drawn {found['drawn']} (seed {found['seed']}{samples})"
    format.table(table, {key: key for key in table[0]}, title=title)
    difference = _signed(leading, found["difference"])
    if found["interval"]:
        low, high = (_signed(leading, found["interval"][key]) for key in ("low", "high"))
        difference += f" (95 % interval {low} to {high})"
    rows = {f"difference to {'its batch norm anew' if found['recomputed'] else 'the subnetwork'}": difference}
    if found["disagreement"] is not None:
        rows["members disagree on"] = format.percent(found["disagreement"])
    format.pairs(
        {
            **rows,
            "density of the members": format.cell("density", found["density"]["mean"]),
            "multiply-accumulates": f"{found['macs']:,}, of the subnetwork {found['single_macs']:,}",
            "size": f"{format.size(found['bytes'])}, of the subnetwork {format.size(found['single_bytes'])}",
        }
    )


def corruptions(record: Mapping[str, Any]) -> None:
    """Print the accuracy by kind and severity of corruption."""
    kinds: dict[str, dict[str, object]] = {}
    for row in record["corruptions"]:
        kinds.setdefault(row["corruption"], {})[f"accuracy {row['severity']}"] = row["accuracy"]
    rows = [{"corruption": kind.replace("_", " "), **row} for kind, row in kinds.items()]
    headings = {key: key.removeprefix("accuracy ") for key in rows[0]}
    format.table(rows, headings, title="Accuracy under corruptions, by severity")
    if "corrupted_accuracy" in record:
        format.say(f"mean over the kinds of the benchmark and all severities: {format.percent(record['corrupted_accuracy'])}")


def potential(record: Mapping[str, Any]) -> None:
    """Print prune potentials: a row for each distribution of inputs, with the error of each network."""
    ratios = [format.percent(one["prune_ratio"]) for one in record["networks"]]
    rows = [
        {
            "inputs": row["inputs"].replace("_", " "),
            "potential": format.percent(row["prune_potential"]),
            "dense": format.percent(row["dense_error"]),
            **{str(index): format.percent(error) for index, error in enumerate(row["errors"])},
        }
        for row in record["rows"]
    ]
    headings = {"inputs": "inputs", "potential": "prune potential", "dense": "error: dense"}
    title = (
        f"{record['data']} {record['split']}, {record['items']:,} images; dense: {record['against']}; the error may rise by "
        f"{100 * record['delta']:g} percentage points"
    )
    format.table(rows, {**headings, **{str(index): f"{ratio} pruned" for index, ratio in enumerate(ratios)}}, title=title)


def _signed(name: str, value: float) -> str:
    """A difference of two values of a metric."""
    return f"{100 * value:+.2f} points" if is_fraction(name) else f"{value:+.4g}"


def _test(test: Mapping[str, Any]) -> str:
    p_value = f"p = {test['p_value']:.2g}" if test["p_value"] else "p < 0.001"
    if "only_this" not in test:
        return f"{test['test']}: {p_value}"
    return (
        f"{test['test']}: {p_value} ({test['only_this']:,} items right in this one only, {test['only_other']:,} in the other)"
    )
