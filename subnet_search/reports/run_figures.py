"""Plotly figures about a run."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from subnet_search.analysis.plots import COLOURS, DASHES, PERCENT, need_plotly
from subnet_search.artifact import Subnetwork
from subnet_search.core.task_metrics import in_words, is_fraction

Rows = Sequence[Mapping[str, Any]]

FILTERS, ACROSS = 64, 16  # filters of the first layer that are drawn at most, and in each row
CHANNELS = 4  # inputs of a filter that is drawn as a picture, at most
PICTURE = (256, 512)  # rows and columns of another mask that are drawn, at most
LEVELS = 40  # rows of the picture of scores over time
NO_GRID = {"showgrid": False, "rangemode": "tozero"}
KEPT = [[0, "#d9d9e0"], [1, "#0B3D91"]]
PALETTE = (*COLOURS[:-1], "#888888")  # black cannot be seen on a dark page


def figure(**axes: Any) -> Any:
    """An empty figure of Plotly with this layout. Raises UserError when Plotly is not installed."""
    return need_plotly().graph_objects.Figure(layout={"colorway": PALETTE, **axes})


def line(index: int, dash: str | None = None) -> dict[str, Any]:
    """Plotly's style of the line number `index`: its colour, and a dash that changes when the colours repeat."""
    turn, place = divmod(index, len(PALETTE))
    return {"color": PALETTE[place], "width": 2, "dash": dash or DASHES[turn % len(DASHES)]}


def _epochs(epochs: Rows) -> dict[str, Any]:
    return {"title": "epoch", "dtick": 1 if len(epochs) < 16 else None}


def curves(epochs: Rows, leading: str) -> Any:
    """The leading metric and the density over the epochs, and on the right axis the training loss."""
    whole = [0, 1] if is_fraction(leading) and len(epochs) == 1 else None  # around one point the axis would pass 100 %
    drawn = figure(
        xaxis=_epochs(epochs),
        yaxis={"title": in_words(leading), "tickformat": PERCENT if is_fraction(leading) else None, "range": whole},
        yaxis2={"title": "training loss, density", "overlaying": "y", "side": "right", "tickmode": "auto", **NO_GRID},
        margin={"l": 55, "r": 55, "t": 20, "b": 45},
    )
    x = [epoch["epoch"] for epoch in epochs]
    lines = ((f"val_{leading}", in_words(leading, "validation")), ("train_loss", "training loss"), ("density", "density"))
    for index, (key, name) in enumerate(lines):
        drawn.add_scatter(
            x=x,
            y=[epoch.get(key) for epoch in epochs],
            customdata=[epoch["step"] for epoch in epochs],
            name=name,
            mode="lines+markers" if len(x) < 30 else "lines",
            line=line(index, "dot" if key == "density" else None),
            yaxis="y2" if index else "y",
            hovertemplate="epoch %{x}, step %{customdata}: %{y:.4~g}",
        )
    return drawn


def scores(epochs: Rows) -> Any:
    """The histograms of `training.history` over the epochs: shares of the scores, on levels that all epochs share."""
    edges = np.linspace(
        min(epoch["scores"]["low"] for epoch in epochs), max(epoch["scores"]["high"] for epoch in epochs), LEVELS + 1
    )
    columns = []
    for epoch in epochs:
        own = epoch["scores"]
        cumulated = np.concatenate([[0], np.cumsum(own["counts"])]) / sum(own["counts"])
        columns.append(np.diff(np.interp(edges, np.linspace(own["low"], own["high"], len(cumulated)), cumulated)))
    shares = np.stack(columns, axis=1)
    drawn = figure(xaxis=_epochs(epochs), yaxis={"title": str(epochs[0]["scores"]["of"])})
    drawn.add_heatmap(
        x=[epoch["epoch"] for epoch in epochs],
        y=((edges[1:] + edges[:-1]) / 2).tolist(),
        z=np.where(shares > 0, shares, np.nan).round(5).tolist(),
        colorscale=[[0, "rgba(0,114,178,0.08)"], [1, "rgba(0,114,178,1)"]],
        colorbar={"tickformat": ".0%", "thickness": 10},
        hovertemplate="epoch %{x}, near %{y:.3g}: %{z:.2%}<extra></extra>",
    )
    return drawn


def changes(epochs: Rows) -> Any:
    """The share of the kept units that each epoch dropped and grew."""
    drawn = figure(xaxis=_epochs(epochs), yaxis={"title": "share of the kept units", "tickformat": PERCENT})
    for index, key in enumerate(("dropped", "grown")):
        x, y = ([epoch[name] for epoch in epochs] for name in ("epoch", key))
        style, hover = line(index, ("solid", "dot")[index]), "epoch %{x}: %{y:.2%}"
        drawn.add_scatter(x=x, y=y, name=key, mode="lines+markers", line=style, hovertemplate=hover)
    return drawn


def by_layer(densities: Mapping[str, float]) -> Any:
    """A bar for each layer: the fraction of its weights that are kept. densities: by name, the first layer on top."""
    names = [name.removesuffix(".weight") for name in densities][::-1]
    drawn = figure(
        xaxis={"title": "fraction of weights kept", "range": [0, 1]},
        yaxis={"type": "category", "tickfont": {"size": 12 if len(names) < 40 else 9}},
        height=max(200, min(1600, 24 * len(names) + 90)),
        showlegend=False,
    )
    values = list(densities.values())[::-1]
    drawn.add_bar(x=values, y=names, orientation="h", hovertemplate="%{y}: %{x:.4~g}<extra></extra>")
    return drawn


def first_layer(subnet: Subnetwork) -> tuple[str, Any]:
    """A sentence, and the mask of the first layer: pictures of its filters, or the beginning of the matrix."""
    name, mask = next(iter(subnet.masks.items()))
    shape = subnet.origin.shape
    if mask.dim() == 2 and len(shape) == 3 and shape[0] <= CHANNELS and prod(shape) == mask.shape[1]:
        mask = mask.reshape(len(mask), *shape)  # a neuron reads an image
    if mask.dim() == 4 and mask.shape[1] <= CHANNELS:
        picture, count = _tiles(mask[:FILTERS]), min(FILTERS, len(mask))
        inputs = ", its input channels below one another" if mask.shape[1] > 1 else ""
        text = f"Masks of the first {count} of {len(mask)} filters or neurons of {name}{inputs}. Blue weights are kept."
    else:
        matrix = mask.flatten(1) if mask.dim() > 1 else mask[None]
        whole = tuple(matrix.shape)
        picture = matrix[: PICTURE[0], : PICTURE[1]].float()
        text = f"Mask of {name}: {' x '.join(map(str, picture.shape))} of {whole[0]} x {whole[1]} weights, a row for each "
        text += "output. Blue weights are kept."
    tall, wide = picture.shape
    drawn = figure(
        xaxis={"visible": False, "constrain": "domain"},
        yaxis={"visible": False, "scaleanchor": "x", "constrain": "domain"},
        height=int(min(620, max(160, 40 + 900 * tall / wide))),
        margin={"l": 5, "r": 5, "t": 5, "b": 5},
    )
    z = [[None if value != value else int(value) for value in row] for row in picture.flip(0).tolist()]
    drawn.add_heatmap(z=z, zmin=0, zmax=1, colorscale=KEPT, showscale=False, hoverinfo="skip")
    return text, drawn


def _tiles(filters: Tensor) -> Tensor:
    """Pictures of filters (N, channels, height, width) side by side, with gaps of NaN between them."""
    pictures = torch.nn.functional.pad(filters.flatten(1, 2).float(), (0, 1, 0, 1), value=float("nan"))
    rows = [torch.cat(list(pictures[at:end]), 1) for at, end in pairwise([*range(0, len(pictures), ACROSS), len(pictures)])]
    wide = max(row.shape[1] for row in rows)
    return torch.cat([torch.nn.functional.pad(row, (0, wide - row.shape[1]), value=float("nan")) for row in rows])


def calibration(bins: Rows) -> Any:
    """A reliability diagram. bins: rows with confidence, accuracy and the number of items, as `evaluate` measures them."""
    drawn = figure(
        xaxis={"title": "confidence", "range": [0, 1.02], "tickformat": ".0%"},
        yaxis={"title": "accuracy", "range": [0, 1.02], "tickformat": ".0%"},
    )
    ideal = {"color": "#888888", "dash": "dash", "width": 1.5}
    drawn.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="calibrated", line=ideal, hoverinfo="skip")
    x, y, count = ([row[key] for row in bins] for key in ("confidence", "accuracy", "count"))
    drawn.add_scatter(
        x=x,
        y=y,
        customdata=count,
        name="this network (larger: more items)",
        mode="lines+markers",
        line=line(0),
        marker={"size": [6 + 14 * (each / max(count)) ** 0.5 for each in count]},
        hovertemplate="confidence %{x:.1%}, accuracy %{y:.1%}, %{customdata} items<extra></extra>",
    )
    return drawn


def noise(rows: Rows) -> Any:
    """Accuracy, and agreement with another network where it was measured, over the level of uniform noise."""
    axes = {"title": "noise level, in standard deviations of the data"}
    drawn = figure(xaxis=axes, yaxis={"title": "accuracy", "tickformat": PERCENT})
    names = {"accuracy": "accuracy", "agreement": "agreement with the other network"}
    for index, (key, name) in enumerate(names.items()):
        if rows[0].get(key) is not None:
            x, y = ([row[one] for row in rows] for one in ("level", key))
            drawn.add_scatter(x=x, y=y, name=name, mode="lines+markers", line=line(index), hovertemplate="%{x}: %{y:.2%}")
    return drawn


def corruptions(rows: Rows) -> Any:
    """Accuracy over the severity, a line for each corruption."""
    drawn = figure(xaxis={"title": "severity", "dtick": 1}, yaxis={"title": "accuracy", "tickformat": PERCENT}, height=460)
    for index, kind in enumerate(dict.fromkeys(row["corruption"] for row in rows)):
        own = [row for row in rows if row["corruption"] == kind]
        x, y = ([row[key] for row in own] for key in ("severity", "accuracy"))
        name = kind.replace("_", " ")
        drawn.add_scatter(x=x, y=y, name=name, mode="lines+markers", line=line(index), hovertemplate="severity %{x}: %{y:.2%}")
    return drawn
