"""Comparisons: every cell runs once and as it would alone, grids grow, failures are named, and the table says it all."""

import json
import re
import threading

import optuna
import pytest
import yaml
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

import subnet_search as ss
from subnet_search.cli import main
from subnet_search.core.errors import Interrupted, RunError, UserError
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.config_file import check
from subnet_search.extraction.extract import run
from subnet_search.extractors import Extractor, registry
from subnet_search.extractors.base import Published
from subnet_search.extractors.methods.random import Random
from subnet_search.search.queries.data_frame import to_dataframe
from subnet_search.search.queries.queries import trial_rows
from subnet_search.search.queries.study_summary import summarise_study
from subnet_search.search.queries.trial_table import flat_rows
from subnet_search.search.spec.study_spec import spec_of
from subnet_search.search.storage.connect import rdb
from subnet_search.search.storage.read import Snapshot
from subnet_search.search.storage.write import replace_params
from subnet_search.search.studies.comparison import unequal
from subnet_search.search.studies.launcher import run_study
from subnet_search.search.studies.method_grid import (
    SHARED,
    cell_records,
    method_grid,
    prepare_grid,
    sanity_grid,
    table_rows,
)
from subnet_search.training import Recipe

RUN = {
    "network": "lenet_300_100",
    "data": {"name": "digits", "limit": 200},
    "extractor": {"name": "random", "allocation": "uniform"},
    "recipe": {"epochs": 1, "batch_size": 32, "threads": 1, "device": "cpu"},
}
URL = "sqlite:///s.db"


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SUBNET_SEARCH_STORAGE", raising=False)


@pytest.fixture
def flawed(monkeypatch):
    """A method that fails with seed 1, until it is mended."""

    class Flawed(Random):
        def begin(self, net, clock, probe):
            if clock.seed == 1:
                raise RunError("no luck")
            return super().begin(net, clock, probe)

    Flawed.name = "flawed"
    monkeypatch.setitem(registry.REGISTRY, "flawed", Flawed)
    return lambda: monkeypatch.setattr(Flawed, "begin", Random.begin)


def config(**changes):
    return check(RunConfig, {**RUN, **changes})


def grid(methods=("edge_popup", "random"), densities=(0.3,), seeds=1, name="toy", **changes):
    return method_grid(name, config(**changes), methods, densities, seeds)


def complete(wanted, url=URL, **options):
    """Run what is missing of a grid; its study and records."""
    study = prepare_grid(wanted, url)
    study = run_study(wanted.spec, storage=url, trials=spec_of(study).trials, **options)
    return study, cell_records(study, wanted)


def test_densities_are_of_what_the_target_counts():
    wanted = grid(["rigl", "synflow"], [0.5, 0.3], unit="channel", round_to=4, target={"flops": 0.9})
    configs = [wanted.spec.config(cell.attribute["values"]) for cell in wanted.cells]
    at = [(run.extractor.name, run.target, run.extractor.density, run.unit, run.round_to) for run in configs]
    assert at == [
        *((name, {"flops": d}, d, "channel", 4) for name in ("rigl", "synflow") for d in (0.5, 0.3)),
        ("random", None, 1.0, "weight", None),
    ]


def stopping(after):
    """A `should_stop` that says so at one call and never again."""
    calls = []
    return lambda: calls.append(1) or len(calls) == after


def essence(records):
    return [{key: value for key, value in record.items() if key not in ("trial", "seconds")} for record in records]


# Running


def test_every_cell_runs_once_and_a_grid_grows():
    study, first = complete(grid())
    assert [(r["method"], r["density"], r["seed"]) for r in first] == [
        ("edge_popup", 0.3, 0),
        ("random", 0.3, 0),
        ("dense", 1.0, 0),
    ]
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 3
    study, again = complete(grid())
    assert again == first
    assert len(study.trials) == 3
    study, more = complete(grid(seeds=2))
    assert [t.user_attrs["cell"]["seed"] for t in study.trials] == [0, 0, 0, 1, 1, 1]
    assert more[:3] == first
    study, wider = complete(grid(("random", "gumbel"), densities=(0.3, 0.2)))
    added = [(p["method"], p["density"]) for p in trial_params(study)[6:]]
    assert added == [("random", 0.2), ("gumbel", 0.3), ("gumbel", 0.2)]
    assert spec_of(study).trials == len(study.trials) == 9
    assert {r["state"] for r in wider} == {"COMPLETE"}


def test_optuna_shows_method_density_and_seed_also_of_trials_that_an_earlier_version_stored():
    first, _ = complete(grid())
    replace_params(rdb(first._storage), {trial._trial_id: {} for trial in first.trials}, {})  # as in 0.1.0
    study, again = complete(grid())
    assert [r["state"] for r in again] == ["COMPLETE"] * 3
    assert len(study.trials) == 3
    study, _ = complete(grid(("random", "gumbel"), densities=(0.3, 0.2), seeds=2))
    assert [t.params for t in study.trials[:4]] == [
        {"method": method, "density": density, "seed": 0}
        for method, density in (("edge_popup", 0.3), ("random", 0.3), ("dense", 1.0), ("random", 0.2))
    ]
    (distributions,) = {tuple(t.distributions.items()) for t in study.trials}
    assert dict(distributions) == {
        "method": CategoricalDistribution(["edge_popup", "random", "dense", "gumbel"]),
        "density": FloatDistribution(0.2, 1.0, log=True),
        "seed": IntDistribution(0, 1),
    }
    assert optuna.importance.get_param_importances(study).keys() == {"method", "density", "seed"}
    optuna.copy_study(from_study_name="toy", from_storage=URL, to_storage="sqlite:///copy.db")
    copied = optuna.load_study(study_name="toy", storage="sqlite:///copy.db")
    assert [t.params for t in copied.trials] == [t.params for t in study.trials]


def trial_params(study):
    return [row["params"] for row in trial_rows(study)]


def test_a_cell_is_the_run_that_extract_makes():
    _, records = complete(grid(seeds=2, seed=5))
    edge_popup, random, dense = records[3:]
    assert [r["seed"] for r in (edge_popup, random, dense)] == [6, 6, 6]
    shared = {**RUN["recipe"], **SHARED, "nesterov": False}  # nesterov is in the published settings of `random`
    for record, extractor, recipe in (
        (edge_popup, {"name": "edge_popup", "density": 0.3}, RUN["recipe"]),
        (random, {"name": "random", "density": 0.3, "allocation": "uniform"}, shared),
        (dense, {"name": "random", "density": 1.0}, shared),
    ):
        alone = run(config(extractor=extractor, recipe=recipe, seed=6)).summary()
        for key in ("sha256", "seed", "val_accuracy", "test_accuracy", "steps"):
            assert record[key] == alone[key], (record["method"], key)
        assert record["achieved_density"] == alone["density"]
        assert record["forward"] == alone["passes"]["forward"]


def test_a_method_that_trains_no_weights_has_its_published_settings_but_not_its_length(monkeypatch):
    recipe = {"lr": 0.5, "momentum": 0.8, "batch_size": 7}
    monkeypatch.setattr(registry.REGISTRY["edge_popup"], "published", Published("a test", recipe, epochs=99))
    wanted = grid(recipe={"epochs": 1, "lr": 0.2})
    edge_popup, random, _ = [wanted.spec.config(cell.attribute["values"]).resolve().recipe for cell in wanted.cells]
    assert (edge_popup.lr, edge_popup.momentum, edge_popup.epochs, edge_popup.batch_size) == (
        0.5,
        0.8,
        1,
        128,
    )  # it trains no weights, so the rate of weights is not its
    assert (random.lr, random.momentum) == (0.2, 0.9)


@pytest.mark.parametrize(("after", "stopped"), [(1, 0), (3, 1)])
def test_interrupted_and_continued_is_the_same(after, stopped):
    """Asked to stop before the first run, and at its second step."""
    _, whole = complete(grid(), "sqlite:///whole.db")
    with pytest.raises(Interrupted):
        complete(grid(), should_stop=stopping(after))
    study, parts = complete(grid())
    assert essence(parts) == essence(whole)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 3
    assert sum("interruptions" in t.user_attrs for t in study.trials) == stopped


def test_a_smaller_grid_after_an_interruption_runs_nothing_else():
    _, whole = complete(grid(), "sqlite:///whole.db")
    with pytest.raises(Interrupted):
        complete(grid(), should_stop=stopping(3))
    study, smaller = complete(grid(("random",)))
    assert [r["state"] for r in smaller] == ["COMPLETE", "COMPLETE"]
    assert [row["params"]["method"] for row in trial_rows(study) if row["state"] == "COMPLETE"] == ["random", "dense"]
    study, wide = complete(grid())
    assert len(study.trials) == 3  # what had been withdrawn went on
    assert essence(wide) == essence(whole)


def test_two_calls_at_the_same_moment_queue_a_cell_once():
    wanted = grid()
    prepare_grid(wanted, URL)
    calls = [threading.Thread(target=prepare_grid, args=(wanted, URL)) for _ in range(4)]
    for call in calls:
        call.start()
    for call in calls:
        call.join()
    study, records = complete(wanted)
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 3
    assert [r["state"] for r in records] == ["COMPLETE"] * 3


@pytest.mark.long
def test_two_workers_run_all_cells_however_many_trials_the_specification_has():
    wanted = grid()
    _, alone = complete(wanted, "sqlite:///alone.db")
    prepare_grid(wanted, URL)
    study = run_study(wanted.spec.model_copy(update={"trials": 1}), storage=URL, workers=2)
    assert essence(cell_records(study, wanted)) == essence(alone)
    assert len({t.user_attrs["worker"]["pid"] for t in study.trials if t.state.name == "COMPLETE"}) == 2


# Failing


def test_a_failed_cell_is_named_and_tried_again(flawed):
    wanted = grid(("flawed", "random"), seeds=2)
    study, records = complete(wanted)
    assert [r["state"] for r in records] == ["COMPLETE"] * 3 + ["FAIL", "COMPLETE", "COMPLETE"]
    assert records[3]["reason"] == "no luck"
    row = table_rows(records)[0]
    assert (row["complete"], row["cells"], row["val_accuracy"]["deviation"]) == (1, 2, None)
    _, records = complete(wanted)
    assert records[3]["reason"] == "no luck"
    flawed()
    study, records = complete(wanted)
    assert {r["state"] for r in records} == {"COMPLETE"}
    assert len(study.trials) == 8


def test_many_failures_in_a_row_do_not_stop_the_rest(flawed):
    study, records = complete(grid(("flawed",), densities=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6), seed=1))
    assert [r["state"] for r in records] == ["FAIL"] * 6 + ["COMPLETE"]
    assert len(study.trials) == 7


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: grid(("gumbell",)), "unknown extractor 'gumbell': did you mean 'gumbel'"),
        (lambda: grid(densities=(0.0,)), "edge_popup at density 0: extractor.density: .*greater than 0"),
        (lambda: grid(densities=(0.3, 20)), "densities are fractions, from 0 to 1: 20 % is 0.2"),
        (lambda: grid(("undense",)), "undense has no density, so it cannot be compared at 0.3"),
        (lambda: sanity_grid("s", config(extractor="edge_popup"), 1), "prune before training, which edge_popup"),
    ],
)
def test_mistakes_are_found_before_anything_runs(wrong, message, monkeypatch):
    class Undense(Extractor):
        """One without a density."""

    Undense.name = "undense"
    monkeypatch.setitem(registry.REGISTRY, "undense", Undense)
    study = prepare_grid(grid(("random",)), URL)
    with pytest.raises(UserError, match=message):
        wrong()
    assert {t.state.name for t in study.trials} == {"WAITING"}


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_a_method_that_cannot_run_on_the_network_is_found_before_anything_runs(file, capsys, tmp_path, more):
    words = ["--extractors", "random,early_bird", "--densities", "0.3", "-s", "unit=channel", *more]
    assert said(capsys, "compare", file, *words, code=2).err == (
        "error: early_bird cannot run at density 0.3: early_bird ranks channels by the scales of batch norms, and this "
        "network's channels have none\n"
    )
    assert not (tmp_path / "runs").exists()
    with pytest.raises(UserError, match="early_bird cannot run at density"):
        ss.compare({**RUN, "unit": "channel"}, ["early_bird"], [0.3])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"network": "lenet5"}, "the study 'toy' .*run.network.name was lenet_300_100, now lenet5"),
        ({"seed": 1}, "run.seed was 0, now 1"),
    ],
)
def test_another_comparison_under_the_name_of_one_with_results(other, message):
    complete(grid(("random",)))
    with pytest.raises(UserError, match=message):
        complete(grid(**other))


# Sanity checks


def test_the_sanity_checks():
    method = {"name": "snip", "density": 0.3}
    wanted = sanity_grid("s", config(extractor=method), 1)
    made = {cell.row.method: cell.attribute["values"]["extractor"] for cell in wanted.cells}
    shuffled = {"name": "shuffled", "source": method, "density": 0.3}
    assert made == {
        "original": method,
        "shuffled": shuffled,
        "redrawn": {**shuffled, "permute": False, "redraw": True},
        "inverted": {**method, "invert": True},
        "random": {"name": "random", "density": 0.3, "allocation": "erk"},
        "dense": {"name": "random", "density": 1.0},
    }
    _, records = complete(wanted)
    assert [(r["state"], round(r["achieved_density"], 4)) for r in records] == [("COMPLETE", 0.3)] * 5 + [("COMPLETE", 1.0)]
    assert len({r["sha256"] for r in records}) == 6
    assert "inverted" not in {cell.row.method for cell in sanity_grid("s", config(), 1).cells}


def test_all_sanity_arms_have_the_methods_recipe(monkeypatch):
    monkeypatch.setattr(registry.REGISTRY["snip"], "published", Published("a test", {"lr": 0.5, "momentum": 0.8}))
    wanted = sanity_grid("s", config(extractor="snip", recipe={**RUN["recipe"], "lr": 0.2}), 1)
    recipes = [wanted.spec.config(cell.attribute["values"]).resolve().recipe for cell in wanted.cells]
    assert {(recipe.lr, recipe.momentum) for recipe in recipes} == {(0.2, 0.8)}


# Showing


def test_rows_are_means_and_spreads(tmp_path):
    known = {"steps": 10, "seconds": 1.0, "forward": 10, "backward": 10, "test_accuracy": None, "achieved_density": 0.5}
    known |= {"trained": False, "late_gain": None}
    records = [
        {"method": "a", "density": 0.5, "state": "COMPLETE", "val_accuracy": accuracy, **known} for accuracy in (0.5, 0.75, 0.7)
    ] + [{"method": "b", "density": 0.5, "state": "FAIL", "val_accuracy": None, **dict.fromkeys(known)}]
    a, b = table_rows(records)
    assert a["val_accuracy"] == pytest.approx({"mean": 0.65, "low": 0.5, "high": 0.75, "deviation": 0.0175**0.5})
    assert a["test_accuracy"] is b["val_accuracy"] is None
    assert (a["complete"], b["complete"], b["cells"]) == (3, 0, 1)
    ss.plot_comparison({"name": "c", "rows": [a, b]}, tmp_path / "c.csv")
    assert (
        tmp_path / "c.csv"
    ).read_text() == "method,density,val_accuracy_mean,val_accuracy_low,val_accuracy_high\na,0.5,0.65,0.5,0.75\n"
    dense = {**a, "method": "dense", "achieved_density": {"mean": 1.0}}
    ss.plot_comparison({"name": "c", "rows": [dense, a, b]}, tmp_path / "d.csv")
    assert (tmp_path / "d.csv").read_text().splitlines()[1:] == ["a,0.5,0.65,0.5,0.75", "dense,1.0,0.65,0.5,0.75"]
    ss.plot_comparison({"name": "c", "rows": [a, b]}, tmp_path / "c.tex")
    assert (tmp_path / "c.tex").read_text().splitlines()[4] == r"a & 0.5 & 0.65 & 0.5 & 0.75 \\"


def test_methods_that_keep_different_numbers_of_weights_are_named():
    def rows(**kept):
        shares = {"dense": 1.0, **kept}
        return [{"method": m, "density": 0.2, "achieved_density": {"mean": share}} for m, share in shares.items()]

    units = {"hrank": "channel", "snip": "weight"}
    assert unequal(rows(hrank=0.038, snip=0.2), units, advise=True) == (
        "one density keeps different fractions of the weights: at 0.2, hrank 0.038 (by channel), snip 0.2 (by weight); to "
        "compare at equal numbers of parameters, set target={parameters: 0.2}"
    )
    assert unequal(rows(hrank=0.19, snip=0.2), units, advise=False) == (
        "methods prune different units: hrank channel, snip weight"
    )
    assert unequal(rows(gmp=0.19, snip=0.2), {"gmp": "weight", "snip": "weight"}, advise=True) is None
    assert grid(("hrank", "snip"), network="lenet5").units == units


def test_a_comparison_of_no_epochs_says_that_nothing_was_trained():
    record = ss.compare({**RUN, "recipe": {**RUN["recipe"], "epochs": 0}}, ["snip"], [0.3], seeds=1, progress=False)
    assert record["too_short"] == "nothing was trained: recipe.epochs is 0"


def test_a_comparison_looks_like_a_study():
    study, _ = complete(grid())
    assert trial_params(study)[0] == {"method": "edge_popup", "density": 0.3, "seed": 0}
    (row, *_), frame = flat_rows(Snapshot(study)), to_dataframe(study)  # Optuna, tables and data frames have the same keys
    assert {key: row[key] for key in study.trials[0].params} == study.trials[0].params == trial_params(study)[0]
    assert dict(frame.loc[0, list(study.trials[0].params)]) == study.trials[0].params
    assert (row["achieved_density"], row["density"]) == (study.trials[0].user_attrs["density"], 0.3)
    record = summarise_study(study)
    assert record["space"] == {"method": "edge_popup | random | dense", "density": "0.3 | 1", "seed": "0"}
    assert record["budget"] == 3
    assert record["sampler"] is None


def said(capsys, *words, code=0):
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert ended.value.code == code
    return capsys.readouterr()


@pytest.fixture
def file(tmp_path):
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(RUN))
    return "toy.yaml"


@pytest.mark.slow
def test_the_commands(file, capsys, tmp_path, flawed):
    words = ["compare", file, "--extractors", "edge_popup, flawed", "--densities", "0.3"]
    shown = said(capsys, *words, "--seeds", 2)
    assert re.search(r"edge_popup +0\.3 +2/2 +\d+\.\d\d \(\d+\.\d\d-\d+\.\d\d\) ", shown.out)
    assert re.search(r"flawed +0\.3 +1/2 ", shown.out)
    assert re.search(r"dense +1 +2/2 ", shown.out)
    assert "flawed at 0.3, seed 1: no luck" in shown.out
    assert "[5/6]" in shown.err
    assert "one epoch does not show whether a method has converged: edge_popup at 0.3" in shown.out
    record = json.loads(said(capsys, *words, "--json").out)
    assert record["name"] == "compare-toy"
    assert [row["complete"] for row in record["rows"]] == [3, 2, 3]
    assert len(record["cells"]) == 9
    assert len({cell["sha256"] for cell in record["cells"] if cell["state"] == "COMPLETE"}) == 8
    again = ss.compare(file, ["edge_popup", "flawed"], [0.3], name="compare-toy")
    assert {row["method"]: row["val_accuracy"] for row in again["rows"]} == {
        row["method"]: row["val_accuracy"] for row in record["rows"]
    }
    if record["plot"]:
        assert (tmp_path / record["plot"]).is_file()
    sane = json.loads(said(capsys, "sanity", file, "-s", "extractor={name: snip, density: 0.3}", "--seeds", 1, "--json").out)
    assert [row["method"] for row in sane["rows"]] == ["original", "shuffled", "redrawn", "inverted", "random", "dense"]
    assert "original" in said(capsys, "sanity", file, "-s", "extractor={name: snip, density: 0.3}", "--seeds", 1).out
    for look in (["list"], ["show", "compare-toy"], ["trials", "compare-toy"], ["trial", "compare-toy", 0]):
        assert "compare-toy" in said(capsys, "study", *look).out or look[0] == "trials"


def test_a_comparison_goes_on_as_a_study(file, capsys):
    prepare_grid(grid(name="compare-toy"), "sqlite:///runs/studies.db")
    assert json.loads(said(capsys, "study", "run", "compare-toy", "--json").out)["states"] == {"COMPLETE": 3}


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (["--extractors", "random", "--densities", "some"], "--densities takes numbers separated by commas, got 'some'", 2),
        (["--extractors", ",", "--densities", "0.1"], "--extractors is empty", 2),
        (["--extractors", "randm", "--densities", "0.1"], "unknown extractor 'randm': did you mean 'random'", 2),
        (["--densities", "0.1"], "Missing option '--extractors'", 2),
        (
            ["--extractors", "random", "--densities", "0.1", "--seeds", 1, "-s", "recipe.lr=1e30"],
            "all 2 runs failed, the first",
            1,
        ),
    ],
)
def test_mistakes_are_one_line(file, capsys, words, message, code):
    shown = said(capsys, "compare", file, *words, code=code)
    assert shown.out == ""
    assert message in shown.err.splitlines()[-1]
    assert shown.err.splitlines()[-1].startswith("error: ")


def test_without_plotly(file, capsys, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    words = ["compare", file, "--extractors", "random", "--densities", "0.3", "--seeds", 1]
    assert "plots need plotly" in said(capsys, *words, "--plot", "p.html", code=2).err
    assert "no plot: plotly is not installed" in said(capsys, *words).out


def test_a_method_that_trains_no_weights_keeps_its_own_rate():
    """Also where it is the default that the configuration does not name."""
    wanted = method_grid("rates", RunConfig(recipe=Recipe(lr=0.03, weight_decay=0.1)), ["gumbel", "rigl"], [0.5], 1)
    gumbel, rigl, dense = [wanted.spec.config(cell.attribute["values"]).resolve().recipe for cell in wanted.cells]
    assert (gumbel.lr, gumbel.weight_decay) == (50, 0)
    assert (rigl.lr, rigl.weight_decay) == (dense.lr, dense.weight_decay) == (0.03, 0.1)


def test_all_cells_are_run_however_many_trials_the_specification_has():
    wanted = grid()
    study = prepare_grid(wanted, URL)
    run_study(wanted.spec.model_copy(update={"trials": 1}), storage=URL)
    assert [record["state"] for record in cell_records(study, wanted)] == ["COMPLETE"] * 3
