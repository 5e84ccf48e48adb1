"""The README's picture, from the table of `paradigms` in RESULTS.md: `python benchmarks/picture.py`."""

import re
from pathlib import Path

from matplotlib.figure import Figure

HERE = Path(__file__).parent
ROW = re.compile(r"^\| ([^|]+?) \| (0\.05|0\.02|1\.0?) \| ([\d.]+) \(([\d.]+) to ([\d.]+)\)", re.M)


def main() -> None:
    text = (HERE / "RESULTS.md").read_text()
    section = text[text.index("## paradigms") :].split("\n## ")[0]
    rows = [(name, density, *map(float, values)) for name, density, *values in ROW.findall(section)]
    at = {density: {row[0]: row[2:] for row in rows if row[1] == density} for density in ("0.05", "0.02")}
    names = sorted((name for name in at["0.05"] if name != "random, uniform"), key=lambda name: at["0.05"][name][0])
    page = Figure(figsize=(7.5, 4.2), layout="constrained")
    ax = page.subplots()
    for place, (density, colour, marker) in enumerate((("0.05", "#0072B2", "o"), ("0.02", "#D55E00", "s"))):
        means, lows, highs = zip(*(at[density][name] for name in names), strict=True)
        heights = [index + 0.12 - 0.24 * place for index in range(len(names))]
        error = [[m - low for m, low in zip(means, lows, strict=True)], [h - m for m, h in zip(means, highs, strict=True)]]
        label = f"{float(density):.0%} of the weights"
        ax.errorbar(means, heights, xerr=error, fmt=marker, color=colour, markersize=5, capsize=2.5, elinewidth=1, label=label)
    dense = next(row for row in rows if row[0] == "dense")
    ax.axvline(dense[2], color="#666666", linestyle="--", linewidth=1)
    ax.annotate("dense ", (dense[2], -0.6), ha="right", fontsize=9, color="#666666")
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel("test accuracy on Fashion-MNIST, %")
    ax.grid(axis="x", color="#dddddd", linewidth=0.6)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="upper left")
    (HERE.parent / "docs" / "images").mkdir(exist_ok=True)
    page.savefig(HERE.parent / "docs" / "images" / "methods.svg", facecolor="white", metadata={"Date": None})


if __name__ == "__main__":
    main()
