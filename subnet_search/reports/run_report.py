"""What a report says about a run: its folder, or the file of its subnetwork."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from subnet_search.artifact import Subnetwork
from subnet_search.core.documents import read_json
from subnet_search.core.errors import UserError, reading
from subnet_search.core.numbers_as_text import cell, percent, seconds, size
from subnet_search.core.task_metrics import in_words, leading_in
from subnet_search.extraction.saved_records import exports_in, load_record
from subnet_search.nets import NetworkSpec, is_ours
from subnet_search.reports import run_figures
from subnet_search.reports.html_page import Column, Section

SPLITS = {"val": "validation", "test": "test"}
VERDICTS = {"same": "no operation was removed", "unsure": "no clear difference"}
OLDER = "Not recorded: the run is older than this part of the history, or the folder has no metrics.jsonl."
TITLES = {"relevance": "Relevance over time", "weights": "Weights over time"}


def run_column(path: Path, evaluate: bool) -> Column:
    """The answer, curves, masks and settings of a run. evaluate: measure calibration and robustness now.

    Raises UserError for a run that is not finished, and for a file that is no subnetwork.
    """
    folder = path if path.is_dir() else path.parent
    file = path / "subnetwork.safetensors" if path.is_dir() else path
    if not file.is_file() and (folder / "masks.safetensors").is_file():
        raise UserError(
            f"{path} is the folder of a trial, which has no file of the subnetwork: write it with subnet-search study extract, "
            "or make a report about the study"
        )
    if not file.is_file():
        again = f"subnet-search extract --resume --out {shlex.quote(str(path))}"
        raise UserError(f"{path} is a run that is not finished: wait for it, or continue it with {again}")
    subnet = Subnetwork.load(file)
    record = subnet.summary()
    measured = _evaluated(subnet) if evaluate else load_record(file, "evaluation") or {}
    if measured.get("sha256") != subnet.sha256:  # of an earlier run with the same name
        measured = {}
    exports = exports_in(folder) if path.is_dir() else {}
    epochs = read_history(folder)
    sections = [
        *_training(epochs, leading_in(record)),
        *_topology(subnet, record, epochs),
        *_exports(exports),
        *_quality(measured, file, subnet.origin.network),
        *_reproduction(subnet, record, path, folder),
    ]
    return Column(
        f"{record['extractor']} on {record['network'] or 'a network from Python'}",
        f"{record['data'] or 'data from Python'}, seed {record['seed']}; {path}",
        list(_answer(record, subnet, file, measured, exports)),
        sections,
        subnet.origin.model_dump(mode="json"),
    )


def read_history(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; empty without the file. Raises UserError for a damaged one."""
    file = folder / "metrics.jsonl"
    if not file.is_file():
        return []
    with reading(file, "the history of a run"):
        return [dict(read_json(line, str(file))) for line in file.read_text().splitlines() if line]


def _answer(
    record: Mapping[str, Any],
    subnet: Subnetwork,
    file: Path,
    measured: Mapping[str, Any],
    exports: Mapping[str, Mapping[str, Any]],
) -> Iterator[tuple[str, str]]:
    """Quality first, each with its split; then density, bytes, operations and times, with those of the dense network."""
    leading = leading_in(record)
    for key, split in reversed(SPLITS.items()):
        value = record.get(f"{key}_{leading}")
        if value is None:
            continue
        name, before = in_words(leading, split), record.get(f"unpruned_{key}_{leading}")  # type: ignore[arg-type]
        bounds = measured.get("interval") if measured.get("split") == key else None
        if bounds:
            name += f" (95 % interval {cell(leading, bounds['low'])} to {cell(leading, bounds['high'])})"
        yield name + (f"; before pruning {cell(leading, before)}" if before is not None else ""), cell(leading, value)
    yield f"of the weights kept: {subnet.masks.kept:,} of {subnet.masks.numel:,}", percent(record["density"])
    dense = subnet.dense_bytes()
    yield f"file; the dense network has {size(dense)}", size(file.stat().st_size)
    if record.get("macs"):
        kept, macs = record["kept_macs"], record["macs"]
        yield f"multiply-accumulates with a kept weight, of {macs:,}", f"{kept:,} ({percent(kept / macs)})"
    timed = {"removed channels" if measured.get("compacted") else "": measured.get("latency") or (), **exports}
    for what, rows in timed.items():
        for row in rows["latency"] if isinstance(rows, Mapping) else rows:
            if row["batch"] == 1:
                how = ", ".join(filter(None, [what, "batch 1", f"{row['threads']} CPU thread"]))
                verdict = VERDICTS.get(row["verdict"], row["verdict"])
                yield (
                    f"a pass; dense {row['dense']['median']:.3g} ms: {verdict} ({how})",
                    f"{row['exported']['median']:.3g} ms",
                )
    yield f"of training, {record['steps']:,} steps", seconds(record["seconds"])


def _training(epochs: Sequence[Mapping[str, Any]], leading: str) -> Iterator[Section]:
    if not epochs:
        yield Section("Learning curves", "Not recorded: the folder has no metrics.jsonl, or the run had no epochs.")
        return
    yield Section("Learning curves", figure=run_figures.curves(epochs, leading))
    scored = [epoch for epoch in epochs if epoch.get("scores")]
    for kind, title in TITLES.items():
        if own := [epoch for epoch in scored if epoch["scores"]["of"] == kind]:
            what = "the relevance of all units" if kind == "relevance" else "the kept weights"
            text = f"The distribution of {what} at the end of each epoch: the stronger the colour, the more. "
            yield Section(title, f"{text}The first and last row of an epoch hold all values beyond.", run_figures.scores(own))
    if not scored:
        yield Section("Scores over time", OLDER)


def _topology(subnet: Subnetwork, record: Mapping[str, Any], epochs: Sequence[Mapping[str, Any]]) -> Iterator[Section]:
    changed = [epoch for epoch in epochs if epoch.get("dropped") is not None]
    title, what = (
        "Changes of the topology",
        "Units (weights, channels, ...) dropped and grown since the end of the epoch before",
    )
    if any(epoch["dropped"] or epoch["grown"] for epoch in changed):
        yield Section(title, f"{what}, as fractions of those kept then.", run_figures.changes(changed))
    elif changed:
        yield Section(title, "None after the first epoch.")
    elif len(epochs) != 1:
        yield Section(title, OLDER)
    yield Section("Density by layer", figure=run_figures.by_layer(record["layer_density"]))
    yield Section("First layer", *run_figures.first_layer(subnet))
    if left := record.get("channels_left_whole"):
        yield Section("Channels that were kept whole", rows=left)


def _exports(exports: Mapping[str, Mapping[str, Any]]) -> Iterator[Section]:
    """The files that the run exported: what was removed, and times."""
    for name, record in exports.items():
        text = f"{size(record['bytes'])}; the dense network has {size(record['dense_bytes'])}. "
        if kept := [f"{key}: {left} of {dense}" for key, (left, dense) in record["channels"].items()]:
            text += f"Channels kept: {', '.join(kept)}."
        text += f" {(record['whole'] or '').capitalize()}"
        yield Section(f"Exported: {name}", text.strip(), rows=_times(record["latency"]))


def _times(latency: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [
        {
            "batch": row["batch"],
            "ms": row["exported"]["median"],
            "ms, dense": row["dense"]["median"],
            "dense / this": row["speedup"],
            "verdict": row["verdict"],
        }
        for row in latency
    ]


def _quality(measured: Mapping[str, Any], file: Path, network: NetworkSpec | None) -> Iterator[Section]:
    """Calibration diagram, robustness curves and times of what was evaluated."""
    own = "" if network is not None and is_ours(network.name) else f" --network {network.name if network else 'MODULE:NAME'}"
    commands = (
        f"subnet-search evaluate {shlex.quote(str(file))}{own} --split test --noise --latency --save\n"
        f"subnet-search report {shlex.quote(str(file.parent))}"
    )
    if not measured:
        text = "Not measured. These commands add calibration, robustness and times to this page:"
        yield Section("Calibration, robustness and times", text, code=commands, open=True)
        return
    where = f"{SPLITS[measured['split']]} split, {measured['items']:,} items"
    if bins := [row for row in measured.get("calibration", ()) if row["count"]]:
        text = f"Expected calibration error {percent(measured['ece'])}, {where}."
        yield Section("Calibration", text, run_figures.calibration(bins))
    if noise := measured.get("noise"):
        text = f"Uniform noise between plus and minus the level is added to normalised inputs; {where}."
        yield Section("Robustness to noise", text, run_figures.noise(noise))
    if corrupted := measured.get("corruptions"):
        yield Section("Robustness to corruptions", f"{where}.".capitalize(), run_figures.corruptions(corrupted))
    if timed := measured.get("latency"):
        advice = f" {measured['advice']}" if measured.get("advice") else ""
        yield Section("Times", f"Medians of one pass, alternating with the dense network.{advice}", rows=_times(timed))
    else:
        yield Section("Times", "Not measured. These commands add them to this page:", code=commands, open=True)


def _reproduction(subnet: Subnetwork, record: Mapping[str, Any], path: Path, folder: Path) -> Iterator[Section]:
    """The complete configuration, the command that gives the same bits, the versions, and the hash to compare with."""
    origin, config = subnet.origin, folder / "config.yaml"
    passed = [name for name, value in (("network", origin.network), ("data", origin.data)) if value is None]
    if config.is_file():
        yield Section("Configuration", f"{config}, with all default values.", code=config.read_text())
    else:
        settings = {key: value for key, value in origin.model_dump(mode="json").items() if value not in (None, [], {})}
        yield Section("Configuration", "From the file of the subnetwork.", code=yaml.safe_dump(settings, sort_keys=False))
    again = f"subnet-search extract {shlex.quote(str(config))} --out {shlex.quote(f'{folder}-again')}"
    if passed or not config.is_file():
        lacking = f"The {' and '.join(passed)} came from Python" if passed else "The file has no run folder beside it"
        again = f"# {lacking}: call ss.extract(...) with the settings above."
    versions = "\n".join(f"{name} {version}" for name, version in origin.versions.items())
    yield Section(
        "How to reproduce",
        "With these versions, on a machine of the same kind, the result has the same hash.",
        code=f"{again}\n\n{versions}\nsha256 {record['sha256']}",
        open=True,
    )


def _evaluated(subnet: Subnetwork) -> dict[str, Any]:
    from subnet_search.extraction.evaluate import evaluate

    classes = (subnet.origin.task or {"name": "classification"})["name"] == "classification"
    return evaluate(subnet, "val", noise=classes)
