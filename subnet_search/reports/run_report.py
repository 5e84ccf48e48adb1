"""What a report says about a run: its folder, or the file of its subnetwork."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
import yaml

from subnet_search.analysis.plots import COLOURS, need_plotly
from subnet_search.artifact import Subnetwork
from subnet_search.core.errors import UserError
from subnet_search.core.numbers_as_text import size
from subnet_search.core.task_metrics import in_words, is_fraction, leading_in
from subnet_search.reports.html_page import Column, Section

FILTERS = 64  # of the first layer, at most so many are drawn


def run_column(path: Path, evaluate: bool) -> Column:
    """The answer, curves, masks and settings of a run. evaluate: measure calibration and robustness too.

    Raises UserError for a path that is no run, and for one that is not finished.
    """
    folder = path if path.is_dir() else path.parent
    file = path / "subnetwork.safetensors" if path.is_dir() else path
    if not file.exists():
        going = (folder / "config.yaml").exists()
        raise UserError(
            f"{path} is a run that is not finished: continue it first" if going else f"{path} is no run folder or file"
        )
    subnet = Subnetwork.load(file)
    record, leading = subnet.summary(), leading_in(subnet.summary())
    measured = _evaluated(subnet) if evaluate else {}
    title = f"{record['extractor']} on {record['network'] or 'a network from Python'}"
    return Column(
        title,
        f"{record['data'] or 'data from Python'}, seed {record['seed']}; {path}",
        list(_answer(record, leading, subnet, file)),
        list(_sections(subnet, record, leading, _epochs(folder), measured, folder)),
    )


def _answer(record: Mapping[str, Any], leading: str, subnet: Subnetwork, file: Path) -> Iterator[tuple[str, str]]:
    splits: tuple[tuple[str, Literal["test", "validation"]], ...] = (("test", "test"), ("val", "validation"))
    for before, suffix in (("", ""), ("unpruned_", ", before pruning")):
        for split, word in splits:
            if (value := record.get(f"{before}{split}_{leading}")) is not None:
                yield in_words(leading, word) + suffix, _number(leading, value)
    yield "density", f"{record['density']:.4g}"
    yield f"file; dense {size(subnet.dense_bytes())}", size(file.stat().st_size)
    if record.get("macs"):
        yield "multiply-accumulates, of dense", f"{record['kept_macs'] / record['macs']:.3g}"
    yield "training", f"{record['steps']} steps, {record['seconds']:.3g} s"


def _sections(
    subnet: Subnetwork,
    record: Mapping[str, Any],
    leading: str,
    epochs: list[dict[str, Any]],
    measured: Mapping[str, Any],
    folder: Path,
) -> Iterator[Section]:
    if epochs:
        yield Section("Learning curves", figure=_curves(epochs, leading))
    yield Section("Density by layer", figure=_by_layer(record["layer_density"]))
    yield _first_layer(subnet)
    yield from _quality(measured)
    if not measured:
        yield Section("Calibration and robustness", "Not measured: subnet-search report RUN --evaluate measures them.")
    left = [{"layer": name, "reason": why} for name, why in (record.get("channels_left_whole") or {}).items()]
    if left:
        yield Section("Channels that were kept whole", rows=left)
    config = folder / "config.yaml"
    if config.exists():
        yield Section("Configuration", code=config.read_text())
        command = f"subnet-search extract {config} --out another_folder"
    else:
        settings = {key: value for key, value in subnet.origin.model_dump(mode="json").items() if value not in (None, [], {})}
        yield Section("Settings", code=yaml.safe_dump(settings, sort_keys=False))
        command = "The run folder has the configuration; the file alone has these settings."
    yield Section("How to reproduce", f"The same bits have the hash {record['sha256']}.", code=command, open=True)


def _curves(epochs: list[dict[str, Any]], leading: str) -> Any:
    figure = need_plotly().subplots.make_subplots(specs=[[{"secondary_y": True}]])
    steps = [epoch["step"] for epoch in epochs]
    lines = (
        (f"val_{leading}", in_words(leading, "validation"), False),
        ("train_loss", "training loss", True),
        ("density", "density", False),
    )
    for index, (key, name, second) in enumerate(lines):
        values = [epoch.get(key) for epoch in epochs]
        style = {"color": COLOURS[index], "dash": "dot" if key == "density" else "solid"}
        figure.add_scatter(x=steps, y=values, name=name, mode="lines", line=style, secondary_y=second)
    figure.update_xaxes(title="step")
    figure.update_yaxes(title=in_words(leading), tickformat=".0%" if is_fraction(leading) else None, secondary_y=False)
    figure.update_yaxes(title="training loss", showgrid=False, secondary_y=True)
    return figure


def _by_layer(densities: Mapping[str, float]) -> Any:
    names = list(densities)[::-1]
    figure = need_plotly().graph_objects.Figure()
    figure.add_bar(x=[densities[name] for name in names], y=names, orientation="h", marker_color=COLOURS[0])
    figure.update_xaxes(title="fraction of weights kept", range=[0, 1])
    figure.update_layout(height=max(260, 22 * len(names) + 110), showlegend=False)
    return figure


def _first_layer(subnet: Subnetwork) -> Section:
    name, mask = next(iter(subnet.masks.items()))
    picture = mask.float()
    text = f"Mask of {name}; dark weights are kept."
    if picture.dim() == 4:  # filters side by side, the kernels of each input below one another
        rows = picture[:FILTERS].transpose(1, 2).flatten(1, 2)  # (filters, height * inputs, width)
        gap = rows.new_full((len(rows), rows.shape[1], 1), float("nan"))
        picture = torch.cat([rows, gap], 2).permute(1, 0, 2).flatten(1)
        text = f"Mask of {name}: a column for each of {min(FILTERS, len(mask))} filters, its kernels below one another. "
        text += "Dark weights are kept."
    else:
        picture = picture.flatten(1)[:256, :1024]
    figure = need_plotly().graph_objects.Figure()
    figure.add_heatmap(
        z=picture.flip(0).tolist(), colorscale=[[0, "#d9d9e0"], [1, "#0B3D91"]], showscale=False, hoverinfo="skip"
    )
    figure.update_xaxes(visible=False)
    figure.update_yaxes(visible=False, scaleanchor="x")
    figure.update_layout(height=min(600, 120 + 1000 * picture.shape[0] // max(1, picture.shape[1])))
    return Section("First layer", text, figure)


def _quality(measured: Mapping[str, Any]) -> Iterator[Section]:
    """Calibration diagram and robustness curve of what `evaluate` has measured."""
    if bins := [row for row in measured.get("calibration", ()) if row["count"]]:
        figure = need_plotly().graph_objects.Figure()
        figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="calibrated", line={"dash": "dash", "color": "#888888"})
        x, y = ([row[key] for row in bins] for key in ("confidence", "accuracy"))
        hover = [f"{row['count']} items" for row in bins]
        figure.add_scatter(x=x, y=y, text=hover, mode="lines+markers", name="this network", line={"color": COLOURS[0]})
        figure.update_xaxes(title="confidence", range=[0, 1])
        figure.update_yaxes(title="accuracy", range=[0, 1])
        yield Section("Calibration", f"Expected calibration error {measured['ece']:.4f} on validation data.", figure)
    if noise := measured.get("noise"):
        figure = need_plotly().graph_objects.Figure()
        figure.add_scatter(x=[row["level"] for row in noise], y=[row["accuracy"] for row in noise], mode="lines+markers")
        figure.update_xaxes(title="uniform noise, standard deviations of the data")
        figure.update_yaxes(title="validation accuracy", tickformat=".0%")
        yield Section("Robustness", figure=figure)


def _evaluated(subnet: Subnetwork) -> dict[str, Any]:
    from subnet_search.extraction.evaluate import evaluate

    classes = (subnet.origin.task or {"name": "classification"})["name"] == "classification"
    return evaluate(subnet, "val", noise=classes)


def _epochs(folder: Path) -> list[dict[str, Any]]:
    file = folder / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def _number(key: str, value: float) -> str:
    return f"{value:.2%}" if is_fraction(key) else f"{value:.4g}"
