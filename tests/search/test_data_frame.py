"""Studies and comparisons as pandas DataFrames."""

import sys

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

import subnet_search as ss
from subnet_search.core.errors import UserError

RUN = {
    "network": "lenet_300_100",
    "data": {"name": "digits", "limit": 200},
    "recipe": {"epochs": 1, "batch_size": 32, "threads": 1, "device": "cpu"},
}
METHODS = CategoricalDistribution(["rigl", "set", "gmp"])
NUMBER, WHOLE = FloatDistribution(0, 1), IntDistribution(0, 100)


@pytest.fixture
def pandas(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return pytest.importorskip("pandas", reason="to_dataframe needs pandas")


def study_of(*trials, **options):
    study = optuna.create_study(**options)
    for params, distributions, attrs in trials:
        study.add_trial(
            create_trial(params=params, distributions=distributions, user_attrs=attrs, values=[1.0] * len(study.directions))
        )
    return study


def test_a_study_over_methods(pandas):
    space = {"extractor": {"choice": {"random": "all", "snip": "all"}}, "recipe.lr": {"float": [0.01, 0.1], "log": True}}
    spec = ss.StudySpec(name="toy", run=RUN, space=space, trials=4, seed=1, storage="sqlite:///s.db", sampler="random")
    study = ss.run_study(spec)
    frame = ss.to_dataframe(study)
    assert list(frame.columns[:6]) == ["number", "state", "method", "density", "seed", "recipe.lr"]
    assert {"allocation", "achieved_density", "val_accuracy", "test_accuracy", "steps", "seconds"} <= {*frame.columns}
    assert not [column for column in frame.columns if "@" in column or column.startswith("extractor")]
    assert set(frame.method) == {"random", "snip"}
    for row, trial in zip(frame.to_dict("records"), study.trials, strict=True):
        assert (row["number"], row["state"], row["method"]) == (trial.number, "COMPLETE", trial.params["extractor"])
        assert row["density"] == trial.params[f"extractor.density @{row['method']}"]
        assert (row["achieved_density"], row["val_accuracy"]) == (trial.user_attrs["density"], trial.value)
        assert row["seed"] == trial.user_attrs["seed"]
        assert row["completed"] >= row["started"] == trial.datetime_start.replace(microsecond=0)
    assert frame.allocation.isna().tolist() == (frame.method != "random").tolist()


def test_a_comparison_and_what_compare_returned(pandas):
    record = ss.compare(RUN, ["random", "snip"], [0.3], seeds=2, storage="sqlite:///s.db")
    stored = ss.to_dataframe(optuna.load_study(study_name="compare", storage="sqlite:///s.db"))
    returned = ss.to_dataframe(record)
    wanted = [(m, d, s) for s in (0, 1) for m, d in (("random", 0.3), ("snip", 0.3), ("dense", 1.0))]
    shared = ["number", "state", "method", "density", "seed", "val_accuracy", "achieved_density", "seconds", "sha256"]
    for frame in (stored, returned):
        assert list(frame.columns[:5]) == shared[:5]
        assert list(frame[["method", "density", "seed"]].itertuples(index=False, name=None)) == wanted
    pandas.testing.assert_frame_equal(stored[shared], returned[shared])


def test_a_hyperparameter_of_domains_of_two_kinds_is_a_column_for_each_method(pandas):
    def trial(method, name, value, domain):
        names = ("extractor", f"extractor.{name} @{method}", f"extractor.drop_fraction @{method}")
        return dict(zip(names, (method, value, 0.5), strict=True)), dict(zip(names, (METHODS, domain, NUMBER), strict=True)), {}

    frame = ss.to_dataframe(
        study_of(trial("rigl", "every", 0.1, NUMBER), trial("set", "every", 7, WHOLE), trial("gmp", "steps", 3, WHOLE))
    )
    assert frame["drop_fraction"].tolist() == [0.5] * 3
    assert (frame.loc[0, "rigl.every"], frame.loc[1, "set.every"]) == (0.1, 7)
    assert "every" not in frame
    taken = study_of(trial("gmp", "steps", 3, WHOLE), ({}, {}, {"steps": 100}))
    assert ss.to_dataframe(taken)[["gmp.steps", "steps"]].sum().tolist() == [3, 100]


def test_any_study_of_optuna(pandas):
    study = study_of(
        ({"lr": 0.1, "values_0": 0.3}, {"lr": NUMBER, "values_0": NUMBER}, {"note": "a"}), directions=["minimize"] * 2
    )
    study.set_metric_names(["values_0", "loss"])
    study.add_trial(create_trial(state=TrialState.FAIL))
    frame = ss.to_dataframe(study)
    assert frame.state.tolist() == ["COMPLETE", "FAIL"]
    assert (frame.loc[0, "lr"], frame.loc[0, "params_values_0"], frame.loc[0, "values_0"], frame.loc[0, "loss"]) == (
        0.1,
        0.3,
        1,
        1,
    )
    assert not {"method", "density", "seed", "interruptions"} & set(frame.columns)
    assert list(ss.to_dataframe(optuna.create_study()).columns) == ["number", "state", "value"]


def test_without_pandas_it_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match=r"to_dataframe needs pandas: pip install 'subnet-search\[pandas\]'"):
        ss.to_dataframe(optuna.create_study())
