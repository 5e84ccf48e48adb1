"""Topologies side by side, and the plots."""

import json
import sys

import pytest
import torch
from toys import mlp, points, run_config

from subnet_search import Masks, Recipe, RunConfig
from subnet_search.analysis import table_files
from subnet_search.analysis.compare_masks import chance_overlap, compare_topologies, topology_record
from subnet_search.artifact.mask_file import load_masks, save_masks
from subnet_search.cli import main
from subnet_search.core.errors import UserError
from subnet_search.core.tensor_files import save_tensors
from subnet_search.topology.units import Units


def masks(**layers):
    return Masks({name: torch.tensor(rows) == 1 for name, rows in layers.items()})


# Eight weights each. A keeps 2 of 4 and 1 of 4; B keeps 2 of 4 and 4 of 4.
A = masks(first=[[1, 1], [0, 0]], second=[[0, 1], [0, 0]])
B = masks(first=[[0, 1], [1, 0]], second=[[1, 1], [1, 1]])


def drawn(seed, density=0.3):
    rng = torch.Generator().manual_seed(seed)
    shapes = {"a": (40, 50), "b": (10, 40)}
    draws = {name: torch.rand(shape, generator=rng) for name, shape in shapes.items()}
    return Units(shapes).keep(draws, density, "erk")


# --- overlap ---


def test_chance_overlap_by_hand():
    # first: 2 * 2 / 4 = 1 in both, 3 in either; second: 1 * 4 / 4 = 1 in both, 4 in either.
    assert chance_overlap(A, B) == 2 / 7
    assert A.overlap(B) == 2 / 7  # 1 and 1 in both, 3 and 4 in either: as chance has it
    assert A.overlap(A) == 1 > chance_overlap(A, A) == (1 + 1 / 4) / (3 + 7 / 4)


def test_chance_overlap_at_the_ends():
    nothing, everything = masks(w=[[0, 0]]), masks(w=[[1, 1]])
    assert chance_overlap(nothing, nothing) == nothing.overlap(nothing) == 1
    assert chance_overlap(nothing, everything) == 0
    assert chance_overlap(everything, everything) == 1


def test_random_masks_overlap_as_chance_has_it():
    found = [drawn(seed) for seed in range(20)]
    seen = [a.overlap(b) for i, a in enumerate(found) for b in found[:i]]
    assert sum(seen) / len(seen) == pytest.approx(chance_overlap(found[0], found[1]), rel=0.01)


# --- records ---


def test_a_topologys_record_by_hand():
    record = topology_record(masks(first=[[1, 1], [0, 0], [0, 1]], second=[[0, 0], [0, 0]]))
    assert record == {
        "density": 0.3,
        "kept": 3,
        "weights": 10,
        "layer_density": {"first": 0.5, "second": 0.0},
        "layer_weights": {"first": 6, "second": 4},
        "collapsed": ["second"],
        "outputs": {"first": 3, "second": 2},
        "dead_outputs": {"first": 1, "second": 2},
    }


@pytest.fixture
def files(tmp_path):
    save_masks(tmp_path / "a.safetensors", A)
    save_masks(tmp_path / "b.safetensors", B)
    save_masks(tmp_path / "c.safetensors", drawn(0))
    return [tmp_path / f"{name}.safetensors" for name in "abc"]


def test_every_pair_is_compared(files):
    record = compare_topologies(files)
    assert [one["density"] for one in record["files"]] == pytest.approx([3 / 8, 6 / 8, 0.3])
    first, *others = record["overlaps"]
    assert first == {"a": str(files[0]), "b": str(files[1]), "overlap": 2 / 7, "chance": 2 / 7}
    assert [(one["overlap"], one["chance"]) for one in others] == [(None, None)] * 2  # another network


def test_a_subnetwork_file_is_as_good_as_its_masks(tmp_path):
    subnet = run_config(RunConfig(extractor="random", recipe=Recipe(epochs=0)), module=mlp(), data=points())
    subnet.save(tmp_path / "net.safetensors")
    save_masks(tmp_path / "masks.safetensors", subnet.masks)
    assert load_masks(tmp_path / "net.safetensors").same(subnet.masks)
    (pair,) = compare_topologies([tmp_path / "net.safetensors", tmp_path / "masks.safetensors"])["overlaps"]
    assert pair["overlap"] == 1
    assert 0 < pair["chance"] < 0.2


# --- the command ---


def command(capsys, *words):
    with pytest.raises(SystemExit) as end:
        main(["masks", *map(str, words)])
    return (end.value.code, *capsys.readouterr())


def test_the_table(files, capsys):
    code, out, err = command(capsys, *files[:2])
    assert (code, err) == (0, "")
    cells = [line.split() for line in out.splitlines()]
    assert ["first", "4", "0.5", "0.5", "1"] in cells  # weights, densities, dead outputs of the first file
    assert ["second", "4", "0.25", "1", "1"] in cells
    assert ["1", "and", "2", "0.2857", "0.2857"] in cells


def test_one_file_and_layers_that_are_gone(tmp_path, capsys):
    save_masks(tmp_path / "a.safetensors", masks(first=[[1, 1]], second=[[0, 0]]))
    _, out, _ = command(capsys, tmp_path / "a.safetensors")
    assert "no weight is left in second" in " ".join(out.split())
    assert "chance" not in out


def test_json_is_the_record(files, capsys):
    assert json.loads(command(capsys, *files, "--json")[1]) == compare_topologies(files)


def test_mistakes_are_one_line(tmp_path, capsys):
    path = tmp_path / "a.safetensors"
    assert command(capsys, path) == (2, "", f"error: no such mask file: {path}\n")
    save_tensors(path, {"x": torch.zeros(2)}, {})
    assert command(capsys, path) == (2, "", f"error: {path} is no file of a subnetwork or of masks\n")
    path.write_text("no masks")
    code, out, err = command(capsys, path)
    assert (code, out, err.count("\n")) == (2, "", 1)


# --- plots ---

POINTS = [
    {"label": label, "density": d, "mean": d, "low": d / 2, "high": 0.9} for label in ("this", "that") for d in (0.1, 0.5)
]
DENSE = {"label": "dense", "density": 1.0, "mean": 0.95, "low": 0.9, "high": 1.0}
BRANCH = {"at": 0.5, "rate": 0.9, "regrow": 0.0, "epochs": 3}
BRANCH |= {"accuracy_before": 0.9, "accuracy_pruned": 0.2, "accuracy_difference": -0.1}


def drawings(path):
    from subnet_search.analysis import plots

    return {
        "accuracy": lambda: plots.accuracy_density(POINTS, path, "A title", dense=DENSE),
        "plasticity": lambda: plots.plasticity([BRANCH, {**BRANCH, "regrow": 0.5}], path, "A title"),
    }


@pytest.mark.parametrize(
    ("kind", "texts"),
    [("accuracy", ["this", "that", "dense 95.00%"]), ("plasticity", ["90% pruned", "90% pruned, regrown", "3 epochs later"])],
)
def test_a_plot_is_one_file_that_needs_no_network(tmp_path, kind, texts):
    pytest.importorskip("plotly")
    drawings(tmp_path / "plot.html")[kind]()
    html = (tmp_path / "plot.html").read_text()
    assert all(text in html for text in ["A title", *texts])
    assert "<script src=" not in html.replace("  ", " ")
    assert "<link" not in html
    assert len(html) > 1_000_000  # plotly.js is in it


@pytest.mark.parametrize("kind", ["accuracy", "plasticity"])
def test_a_plot_for_a_paper(tmp_path, kind):
    pytest.importorskip("matplotlib")
    drawings(tmp_path / "plot.svg")[kind]()
    svg = (tmp_path / "plot.svg").read_text()
    names = [
        "A title",
        *(["this", "that", "dense 95.00%"] if kind == "accuracy" else ["90% pruned, regrown", "before pruning"]),
    ]
    assert all(f"<!-- {name} -->" in svg for name in names)  # texts are drawn as paths, with a comment
    for ending, begins in ((".pdf", b"%PDF"), (".png", b"\x89PNG")):
        drawings(path := tmp_path / f"plot{ending}")[kind]()
        assert path.read_bytes().startswith(begins)


def test_a_picture_without_matplotlib_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"need matplotlib: pip install 'subnet-search\[plots\]'"):
        drawings(tmp_path / "plot.svg")["accuracy"]()


def test_tables_for_papers(tmp_path):
    rows = [{"method": "a_b & c", "accuracy": 0.91234, "note": None}, {"method": "50 %", "accuracy": 1, "note": "x"}]
    table_files.save(rows, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_text() == "method,accuracy,note\na_b & c,0.91234,\n50 %,1,x\n"
    table_files.save(rows, tmp_path / "t.tex")
    assert (tmp_path / "t.tex").read_text().splitlines() == [
        r"\begin{tabular}{lrl}",
        r"\toprule",
        r"method & accuracy & note \\",
        r"\midrule",
        r"a\_b \& c & 0.9123 & -- \\",
        r"50 \% & 1 & x \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


@pytest.mark.parametrize("kind", ["accuracy", "plasticity"])
def test_a_plot_without_plotly_says_what_to_do(tmp_path, kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    with pytest.raises(UserError, match=r"plots need plotly: pip install 'subnet-search\[plots\]'"):
        drawings(tmp_path / "plot.html")[kind]()
    assert not (tmp_path / "plot.html").exists()


def test_ticks_do_not_crowd():
    from subnet_search.analysis.plots import _apart

    assert _apart([0.1, 0.5, 0.099, 0.098, 0.05, 0.49]) == [0.5, 0.1, 0.05]
