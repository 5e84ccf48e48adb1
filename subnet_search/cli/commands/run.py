"""Commands on single runs, methods and data sets."""

import shlex
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from subnet_search.cli.commands._options import CorruptionsFrom, DryRun, Json, Latency, Network, Set, Task, numbers
from subnet_search.cli.commands.analysis import accuracy_curve
from subnet_search.cli.commands.export import export_run, print_export, times
from subnet_search.cli.render import evaluation_page, format, plan_page
from subnet_search.core.errors import UserError
from subnet_search.core.task_metrics import CLASSIFICATION, in_words, leading_in


def extract(
    config: Annotated[Path | None, typer.Argument(help="YAML file of a run [default: all default values].")] = None,
    set_: Set = None,
    out: Annotated[Path | None, typer.Option(help="Run folder [default: runs/NAME, runs/NAME-2, ...].")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue from the last checkpoint in the run folder.")] = False,
    weights: Annotated[
        str | None, typer.Option(help="What the file stores: values, or seed (only the seed that generates them).")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="What the network is trained for: a built-in task, or package.module:Name."),
    ] = None,
    densities: Annotated[
        str | None,
        typer.Option(metavar="NUMBER,...", help="Also write a subnetwork at each of these densities, from the same training."),
    ] = None,
    export: Annotated[
        list[str] | None,
        typer.Option(
            "--export",
            metavar="FORMAT",
            help="Also write the result as compact, csr, bsr, 2:4, onnx or state-dict, and measure it. Repeatable.",
        ),
    ] = None,
    latency: Latency = True,
    allow_import: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-import",
            metavar="NAME",
            help="Allow a name or module that the run folder's configuration imports (--resume).",
        ),
    ] = None,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Train and find one subnetwork, and write it to a run folder.

    To split each batch over several processes: torchrun --nproc-per-node 2 -m subnet_search extract CONFIG
    """
    from subnet_search.cli.render.signals import stop_on_signal
    from subnet_search.core.documents import plain, read_file
    from subnet_search.extraction.config import RunConfig
    from subnet_search.extraction.config_file import read_config
    from subnet_search.extraction.dry_run import dry_run as plan_of
    from subnet_search.extraction.extract import run
    from subnet_search.extraction.run_folder import free_folder, last_folder
    from subnet_search.search.storage.trust import check_imports, imports_of
    from subnet_search.training.distributed import from_first, launcher, process_group

    formats = list(dict.fromkeys(export or ()))
    if formats:
        from subnet_search.deploy.formats import check_format

        for one in formats:
            check_format(one)
    name, again = config.stem if config else "extract", f" --densities {densities}" if densities else ""
    again += "".join(f" --export {one}" for one in formats) + ("" if latency else " --no-latency")
    with process_group() as speaks:
        folder = out or from_first(lambda: last_folder(name) if resume else free_folder(name))
        if stored := resume and config is None:
            config = folder / "config.yaml"
            if config.is_file():  # before it is validated, which imports methods and tasks
                check_imports(str(config), imports_of(plain(read_file(config).values)), allow_import or ())
        overrides = [*(set_ or []), *([f"weights={weights}"] if weights else []), *([f"task={task}"] if task else [])]
        settings, wanted = read_config(RunConfig, config, overrides), numbers("--densities", densities)
        imports = sorted(imports_of(settings.dump()))
        if stored:
            check_imports(str(config), imports, allow_import or ())
        if dry_run:
            format.report(plan_of(settings, formats), json, plan_page.plan)
            return
        again += "".join(f" --allow-import {name}" for name in imports)
        with stop_on_signal(f"continue with: {launcher()} extract --resume --out {folder}{again}") as should_stop:
            subnet = run(
                settings,
                folder,
                resume=resume,
                densities=wanted,
                exports=formats,
                progress=not json,
                should_stop=should_stop,
            )
        if speaks:
            record = subnet.summary()
            if not json:
                format.subnetwork_summary(record, subnet.origin.unit)
            exports = {}
            for one in formats:
                exports[one] = export_run(subnet, settings, folder, one, latency, progress=not json)
                if not json or "error" in exports[one]:
                    print_export(exports[one])
            if json:
                format.print_json({**record, "exports": exports} if exports else record)
            if "curve" in record:
                title = f"{record['extractor']}, {record['network']}, {record['data']}"
                accuracy_curve(record["curve"], folder, title, quiet=json)
            if failed := [one for one, made in exports.items() if "error" in made]:
                format.note(f"the run is finished, without {', '.join(failed)}: {record['subnetwork']} is complete")
                raise typer.Exit(1)


def evaluate(
    subnetwork: Annotated[Path, typer.Argument(help="File of a subnetwork or an exported network.")],
    split: Annotated[str, typer.Option(help="Split to evaluate on: val or test.")] = "val",
    data: Annotated[str | None, typer.Option(help="Another data set than the run's: a name, npz:FILE, ...")] = None,
    network: Network = None,
    task: Task = None,
    noise: Annotated[bool, typer.Option("--noise", help="Also measure accuracy under uniform noise.")] = False,
    corruptions: Annotated[
        bool, typer.Option("--corruptions", help="Also measure accuracy under common image corruptions.")
    ] = False,
    corruptions_from: CorruptionsFrom = None,
    latency: Annotated[
        bool, typer.Option("--latency", help="Also measure the time of a forward pass and of the dense network's.")
    ] = False,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Also compare with another network on the same items: a subnetwork, an exported network, a state dict of the "
            "dense network, or dense: the trained weights that the run started from.",
        ),
    ] = None,
    isometry: Annotated[
        bool, typer.Option("--isometry", help="Also measure the mean singular value of the input-output Jacobian.")
    ] = False,
    save: Annotated[
        bool, typer.Option("--save", help="Also write the record beside the file, for subnet-search report.")
    ] = False,
    readout: Annotated[
        str | None,
        typer.Option(
            metavar="ridge|forward_ridge",
            help="First solve the last layer, or one linear layer after another, by ridge regression on the training data.",
        ),
    ] = None,
    readout_penalty: Annotated[
        float | None, typer.Option(help="Penalty of the readout [default: chosen on held-out training data].")
    ] = None,
    readout_layer: Annotated[str | None, typer.Option(help="Layer of the readout [default: the last linear layer].")] = None,
    ensemble: Annotated[
        int | None,
        typer.Option(metavar="K", help="Also draw K networks from stored relevance or weight statistics, and average them."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the networks that are drawn.")] = 0,
    json: Json = False,
) -> None:
    """Measure accuracy and cost of a subnetwork file.

    Prints accuracy with its 95 % interval, calibration and cost, or the metrics of another task, and with options robustness
    and speed. Exported networks can be measured too. --json has the rows of a reliability diagram, and accuracy by class.
    """
    if split not in ("val", "test"):
        raise UserError(f"--split must be val or test, got {split!r}")
    if save and data:
        raise UserError("--save keeps what is measured on the run's own data: leave out --data, or --save")
    if save and readout:
        raise UserError("--save keeps what is measured of the file's own weights: leave out --readout, or --save")
    from subnet_search.deploy.exported_network import read_artifact
    from subnet_search.deploy.rebuild import NotPassed
    from subnet_search.extraction.evaluate import evaluate as judge
    from subnet_search.extraction.progress import StageProgress

    with StageProgress(latency and not json) as on_stage:
        try:
            record = judge(
                read_artifact(subnetwork),
                "test" if split == "test" else "val",
                network=network,
                data=data,
                task=task,
                noise=noise,
                corruptions=corruptions_from or corruptions,
                latency=latency,
                against=against,
                isometry=isometry,
                readout=readout,  # type: ignore[arg-type]
                readout_penalty=readout_penalty,
                readout_layer=readout_layer,
                ensemble=ensemble,
                seed=seed,
                on_stage=on_stage,
            )
        except NotPassed as missing:
            given = {
                "split": split if split == "test" else None,
                "network": network,
                "data": data,
                "task": task,
                "corruptions-from": corruptions_from,
                "against": against,
                "readout": readout,
                "readout-penalty": readout_penalty,
                "readout-layer": readout_layer,
                "ensemble": ensemble,
                "seed": seed,
            }
            flags = {
                "noise": noise,
                "corruptions": corruptions,
                "latency": latency,
                "isometry": isometry,
                "save": save,
                "json": json,
            }
            words = ["subnet-search", "evaluate", str(subnetwork)]
            words += [word for key, value in given.items() if value for word in (f"--{key}", str(value))]
            words += [f"--{key}" for key, value in flags.items() if value]
            raise UserError(f"{missing}. The whole command: {shlex.join([*words, *missing.options])}") from missing
    if save:
        from subnet_search.extraction.saved_records import save_record

        format.note(f"saved: {save_record(subnetwork, 'evaluation', record)}")
    if json:
        format.print_json(record)
        return
    format.pairs(
        {
            **_qualities(record, split),
            **(_isometry(record) if isometry else {}),
            **(evaluation_page.readout(record["readout"]) if readout else {}),
            "density": format.cell("density", record["density"]),
            "multiply-accumulates": format.macs(record),
            "file": format.size(subnetwork.stat().st_size),
        }
    )
    if latency:
        format.console.print()
        times(record)
    evaluation_page.more(record)


def _isometry(record: dict[str, Any]) -> dict[str, str]:
    """The mean singular values of the Jacobian, or why that of the dense network is not known."""
    before = record["dense_isometry"]
    return {
        "mean singular value of the Jacobian": f"{record['isometry']:.4g}",
        "before pruning": f"not known: {record['dense_isometry_error']}" if before is None else f"{before:.4g}",
    }


def _qualities(record: dict[str, Any], split: str) -> dict[str, str]:
    """The metrics that were evaluated, by their words, the leading one first."""
    leading = leading_in(record)
    value = f"{format.cell(leading, record[leading])}{evaluation_page.interval(leading, record.get('interval'))}"
    first = {f"{in_words(leading)} ({split}, {record['items']:,} items)": value}
    if leading == CLASSIFICATION.leading and "nll" in record:
        return {
            **first,
            **({"top-5 accuracy": format.percent(record["top5_accuracy"])} if "top5_accuracy" in record else {}),
            "negative log-likelihood": f"{record['nll']:.4f} nats",
            "Brier score": f"{record['brier']:.4f}",
            "calibration error (15 bins)": evaluation_page.calibration(record),
            "balanced accuracy": format.percent(record["balanced_accuracy"]),
            "least accurate classes": evaluation_page.worst_classes(record),
        }
    names = [key.removeprefix("val_") for key in record if key.startswith("val_")]
    return first | {in_words(name): format.cell(name, record[name]) for name in names if name in record and name != leading}


def predict(
    subnetwork: Annotated[Path, typer.Argument(help="File of a subnetwork or an exported network.")],
    inputs: Annotated[list[Path], typer.Argument(help="Image files, folders of images, or one .npy or .npz file.")],
    network: Network = None,
    json: Json = False,
) -> None:
    """Predict new inputs: classes, labels, values, pixels or next tokens, by the task of the run.

    Prints a line for each input; --json prints all probabilities too. Images are resized to the size of the run's images, and
    normalised as in the run. A task of your own prints what the network returns.
    """
    from subnet_search.data.readers import images_in
    from subnet_search.deploy.exported_network import read_artifact
    from subnet_search.extraction.predict import predict as predictions

    found = predictions(read_artifact(subnetwork), inputs, network=network)
    files = [file for path in inputs for file in (images_in(path) if path.is_dir() else [path])]
    known = hasattr(found, "rows")  # of a built-in task
    rows = (found.plain() if json else found.rows()) if known else _raw(found)
    names = list(map(str, files)) if len(files) == len(rows) else [str(index) for index in range(len(rows))]
    rows = [{"input": name, **row} for name, row in zip(names, rows, strict=True)]
    if json:
        format.print_json(rows)
        return
    format.table([{key: _shown(key, value) for key, value in row.items()} for row in rows], {key: key for key in rows[0]})


def _raw(output: Any) -> list[dict[str, Any]]:
    """The output of a network for each input, in plain values; tensors of several have their paths as keys."""
    from subnet_search.core.nested import tensors_in

    columns = {name or "output": tensor.tolist() for name, tensor in tensors_in(output)}
    if not columns:
        raise UserError(f"the network returns no tensor, but {type(output).__name__}: use subnet_search.predict in Python")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _shown(key: str, value: Any) -> Any:
    """A value of a prediction for a table."""
    if key == "probability":
        return format.percent(value)
    if key == "pixels":
        return ", ".join(f"{name} {format.percent(part)}" for name, part in value.items())
    if key == "labels":
        return ", ".join(map(str, value)) or "-"
    return f"{value:.6g}" if isinstance(value, float) else value


def methods(
    name: Annotated[str | None, typer.Argument(help="Method to describe [default: list all].")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print all methods as Markdown.")] = False,
    json: Json = False,
) -> None:
    """List the methods, or describe one.

    A description has the paper, formula, hyperparameters and their search domains.
    """
    from subnet_search.extractors import describe as registry
    from subnet_search.extractors.describe import catalogue, describe, published_lines

    if markdown:
        typer.echo(registry.markdown(), nl=False)
        return

    if name is None:
        rows = catalogue()
        if json:
            format.print_json(rows)
            return
        _list_methods(rows)
        return
    method = describe(name)
    if json:
        format.print_json(method)
        return
    format.console.print(f"[bold]{name}[/bold]  {method['description'] or method['summary']}\n")
    paradigm = method["paradigm"]
    format.pairs(
        {
            "paper": f"{method['title']} ({method['paper']})",
            "formula": method["formula"],
            "mask": paradigm["mask_from"],
            "weights": paradigm["weights_from"],
            "density": paradigm["schedule"],
            "trains after": "yes" if paradigm["trains_after"] else "no",
            "units": ", ".join(method["units"]),
            "published": "\n".join(
                line.removeprefix("Published training settings: ") for line in published_lines(method["published"])
            ),
        }
    )
    format.console.print()
    for field in method["hyperparameters"]:
        searched = f"; searched over {field['domain']}" if field["domain"] else ""
        default = "none" if field["default"] is None else field["default"]
        format.pairs({field["name"]: f"{field['help']}\n{field['type']}, default {default}{searched}"})


def _list_methods(rows: list[dict[str, Any]]) -> None:
    """A line for each method, by family: name, what it does (as much as fits), units."""
    from subnet_search.extractors.describe import FAMILIES

    every = max((row["units"] for row in rows), key=len)
    units = {row["name"]: "any" if row["units"] == every else ", ".join(row["units"]) for row in rows}
    for family in FAMILIES:
        found = [row for row in rows if row["family"] == family]
        first, last = max(len(row["name"]) for row in found), max(len(units[row["name"]]) for row in found)
        left = min(format.console.width, 140) - first - last - 6
        format.console.print(f"[bold]{family}[/bold]")
        for row in found:
            summary = textwrap.shorten(row["summary"], left, placeholder=" ...")
            format.say(f"  {row['name']:<{first}}  {summary:<{left}}  {units[row['name']]}")
        format.console.print()
    format.say(f"units: what can be pruned together (any: {', '.join(every)})")
    format.say("paper, formula, hyperparameters: subnet-search methods NAME")


def tasks(
    name: Annotated[str | None, typer.Argument(help="Task to describe [default: list all].")] = None, json: Json = False
) -> None:
    """List the built-in tasks, or describe one.

    A task is what a network is trained for. The list shows the metrics, the leading one with a star; a description has the
    settings too.
    """
    from subnet_search.tasks.describe import catalogue, describe

    if name is None:
        rows = catalogue()
        if json:
            format.print_json(rows)
            return
        shown = [
            {
                "name": row["name"],
                "metrics": ", ".join(f"{metric}{'*' * (metric == row['leading'])}" for metric in row["metrics"]),
                "settings": ", ".join(setting["name"] for setting in row["settings"]),
                "summary": row["summary"],
            }
            for row in rows
        ]
        format.table(shown, {"name": "name", "metrics": "metrics", "settings": "settings", "summary": ""})
        return
    record = describe(name)
    if json:
        format.print_json(record)
        return
    format.console.print(f"[bold]{name}[/bold]  {record['summary']}\n")
    metrics = [f"{metric} ({direction})" for metric, direction in record["metrics"].items()]
    format.pairs({"leading metric": record["leading"], "metrics": ", ".join(metrics)})
    format.console.print()
    for setting in record["settings"]:
        default = "none" if setting["default"] is None else setting["default"]
        format.pairs({setting["name"]: f"{setting['help']}\n{setting['type']}, default {default}"})


def data(
    name: Annotated[str | None, typer.Argument(help="Data set to describe [default: list all].")] = None, json: Json = False
) -> None:
    """List the data sets, or describe one.

    The list shows which are downloaded; a description has the splits and statistics.
    """
    from subnet_search.data import catalogue, describe

    if name is None:
        format.report(catalogue(), json, format.table, {"name": "name", "state": "state", "description": ""})
    else:
        format.report(describe(name), json, format.pairs)
