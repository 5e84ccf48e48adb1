"""The command `export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from subnet_search.cli.commands._options import Json, Latency, Network, Task
from subnet_search.cli.render import format
from subnet_search.core.errors import RunError, UserError
from subnet_search.core.task_metrics import in_words, leading_in

if TYPE_CHECKING:
    from subnet_search.artifact import Subnetwork
    from subnet_search.extraction.config import RunConfig

VERDICTS = {
    "faster": "faster",
    "slower": "slower",
    "as fast": "as fast as the dense network",
    "unsure": "no clear difference",
}


def export(
    subnetwork: Annotated[Path, typer.Argument(help="A subnetwork file.")],
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    to: Annotated[str, typer.Option(metavar="FORMAT", help="compact, csr, bsr, 2:4, onnx or state-dict.")],
    batch: Annotated[int, typer.Option(min=1, help="Batch size for deciding which layers are faster as sparse layers.")] = 16,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads for measuring.")] = 1,
    network: Network = None,
    task: Task = None,
    data: Annotated[
        str | None, typer.Option(help="Data for --recalibrate and for evaluating an ONNX file [default: the run's].")
    ] = None,
    split: Annotated[str, typer.Option(help="Split to evaluate an ONNX file on: val or test.")] = "val",
    recalibrate: Annotated[
        int, typer.Option(min=0, metavar="BATCHES", help="Recompute batch norm statistics on this many training batches.")
    ] = 0,
    normalise: Annotated[
        bool, typer.Option("--normalise", help="Include the normalisation in the file, so that inputs are pixels in 0..1.")
    ] = False,
    latency: Latency = True,
    json: Json = False,
) -> None:
    """Write a smaller or faster file, and measure it.

    compact removes dead channels; csr, bsr and 2:4 (GPU) store linear and 1x1 convolution layers as sparse matrices if that
    is faster; onnx is for ONNX Runtime, in which the file is evaluated; state-dict holds the masked weights in the shapes of
    the dense network.
    """
    if out.exists() and subnetwork.exists() and out.samefile(subnetwork):
        raise UserError(f"{out} is the subnetwork file itself: choose another output file")
    if split not in ("val", "test"):
        raise UserError(f"--split must be val or test, got {split!r}")
    from subnet_search.artifact import Subnetwork
    from subnet_search.deploy.export import export as write
    from subnet_search.extraction.progress import StageProgress

    found = Subnetwork.load(subnetwork)
    with StageProgress(not json) as on_stage:
        record = write(
            found,
            to,
            out,
            network=network,
            data=data,
            task=task,
            split="test" if split == "test" else "val",
            batch=batch,
            threads=threads,
            recalibrate=recalibrate,
            normalise=normalise,
            latency=latency,
            on_stage=on_stage,
        )
    format.report(record, json, print_export)


def export_run(
    subnet: "Subnetwork", settings: "RunConfig", folder: Path, to: str, latency: bool, progress: bool
) -> dict[str, Any]:
    """Export the subnetwork of a run into its folder; returns the record, or `error`, why the file was not written.

    settings: of the run, whose data and task an ONNX file is evaluated with.
    """
    from subnet_search.deploy.export import export as write
    from subnet_search.extraction.progress import StageProgress
    from subnet_search.extraction.saved_records import save_record
    from subnet_search.nets import is_ours

    name = subnet.origin.network.name if subnet.origin.network else None
    file = folder / f"{to.replace(':', '-')}{'.onnx' if to == 'onnx' else '.safetensors'}"
    data = settings.data if settings.data.root else settings.data.name
    given: dict[str, Any] = {"data": data, "task": settings.task} if to == "onnx" else {}
    own = None if name is None or is_ours(name) else name
    try:
        with StageProgress(progress) as on_stage:
            record = write(subnet, to, file, network=own, **given, latency=latency, on_stage=on_stage)
    except (UserError, RunError) as error:  # the run is finished, and other formats may be possible
        return {"to": to, "error": str(error)}
    save_record(file, "export", record)
    return record


def print_export(record: dict[str, Any]) -> None:
    """Print sizes, operations and times beside those of the dense network; of a record with `error` only that."""
    if "error" in record:
        format.note(f"error: not exported to {record['to']}: {record['error']}")
        return
    rows = [
        _row("file", format.size(record["dense_bytes"]), format.size(record["bytes"]), record["dense_bytes"] / record["bytes"]),
        _counted("weights stored", record["dense_weights"], record["weights"]),
        _counted("multiply-accumulates", record["dense_macs"], record["macs"]),
        _counted(f"  {format.which_macs(record)}", record["dense_kept_macs"], record["kept_macs"]),
    ]
    _table([*rows, *_times(record["latency"])], record["to"])
    timed = f"{_how(record['latency'])}; " if record["latency"] else ""
    format.say(f"\n{timed}logits differ from the masked network's by at most {record['difference']:.1g} of the largest")
    if record["recalibrated"]:
        format.say(f"batch norm recalibrated on {record['recalibrated']} training batches, in the masked network too")
    if record["layers"]:
        format.console.print()
        columns = {"layer": "layer", "density": "density", "dense": "ms dense", "sparse": f"ms {record['to']}", "kept": "now"}
        format.table(record["layers"], columns, title="Layer by layer")
    if record["channels"]:
        kept = ", ".join(f"{name}: {left} of {dense}" for name, (left, dense) in record["channels"].items())
        format.say(f"\nchannels kept: {kept}")
    if record["whole"]:
        format.say(f"\nnot compacted: {record['whole']}")
    format.say(f"\ninput: {record['input']}")
    if record[f"val_{leading_in(record)}"] is not None:
        format.say(_quality(record))
    if evaluated := record.get("evaluated"):
        format.say(_evaluated(evaluated))
    format.say(f"\n{_verdict(record)}" if record["latency"] else "\nnot timed (--no-latency)")
    format.say(f"{record['file']} ({format.size(record['bytes'])})")


def _quality(record: dict[str, Any]) -> str:
    """The leading metric of the masked network, as measured by the run."""
    leading = leading_in(record)
    before = ", before batch norm was recalibrated" if record["recalibrated"] else ""
    parts = {"validation": record[f"val_{leading}"], "test": record[f"test_{leading}"]}
    shown = [f"{format.cell(leading, value)} on the {split} split" for split, value in parts.items() if value is not None]
    return f"{in_words(leading)}: {', '.join(shown)}, from the run{before}"


def _evaluated(found: dict[str, Any]) -> str:
    """The leading metric of the file in ONNX Runtime, and of the masked network on the same items."""
    if "error" in found:
        return f"the file was not evaluated: {found['error']}"
    metric, split = found["metric"], "validation" if found["split"] == "val" else "test"
    exported, masked = (format.cell(metric, found[key]) for key in ("exported", "masked"))
    return (
        f"{in_words(metric)} of this file in ONNX Runtime: {exported}, of the masked network: {masked}, "
        f"on {found['items']:,} items of the {split} split"
    )


def times(record: dict[str, Any]) -> None:
    """Print the latencies that `evaluate` measured, and whether the network is faster."""
    _table(_times(record["latency"]), "without dead channels" if record["compacted"] else "this file")
    format.say(f"\n{_how(record['latency'])}\n{_verdict(record)}")


def _times(latency: list[dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for row in latency:
        times = _row(f"ms at batch {row['batch']}", _time(row["dense"]), _time(row["exported"]), row["speedup"])
        rows.append(times if row["verdict"] == "same" else {**times, "times": f"{times['times']} {row['verdict']}"})
        if "dense in torch" in row:
            rows.append(_row("    in torch", _time(row["dense in torch"]), "", None))
    return rows


def _how(latency: list[dict[str, Any]]) -> str:
    threads = latency[0]["threads"]
    return f"median and quartiles of one pass, alternating with the dense network, {threads} CPU thread{'s' * (threads > 1)}"


def _table(rows: list[dict[str, Any]], this: str) -> None:
    format.table(rows, {"name": "", "dense": "dense", "exported": this, "times": "dense / this"})


def _verdict(record: dict[str, Any]) -> str:
    """For which batch sizes it is faster; if for none, advice."""
    if all(row["verdict"] == "same" for row in record["latency"]):
        return f"no operation was removed, so the times differ only by chance: {record['advice']}"
    found: dict[str, list[str]] = {}
    for row in record["latency"]:
        found.setdefault(VERDICTS[row["verdict"]], []).append(str(row["batch"]))
    text = "; ".join(f"{words} at batch {', '.join(found[words])}" for words in VERDICTS.values() if words in found)
    return text if record["faster"] or not record["advice"] else f"{text}: {record['advice']}"


def _row(name: str, dense: str, exported: str, times: float | None) -> dict[str, Any]:
    return {"name": name, "dense": dense, "exported": exported, "times": "" if times is None else f"{times:.2f}x"}


def _counted(name: str, dense: int, exported: int) -> dict[str, Any]:
    return _row(name, f"{dense:,}", f"{exported:,}", dense / max(1, exported))


def _time(measured: dict[str, float]) -> str:
    return f"{measured['median']:.3g} ({measured['low']:.3g} to {measured['high']:.3g})"
