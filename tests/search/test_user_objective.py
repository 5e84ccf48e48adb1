"""Extractors and reports in an objective of one's own: the parameters that Optuna would suggest itself, and its pruning."""

from dataclasses import replace

import optuna
import pytest
import torch
from optuna.trial import FixedTrial, FrozenTrial
from torch import nn

import subnet_search as ss
from subnet_search.core.errors import UserError
from subnet_search.core.search_domains import Int, OneOf, Real, domains
from subnet_search.extraction.config import RunConfig
from subnet_search.extractors import create, get_extractor
from subnet_search.search.spec.search_space import Space
from subnet_search.training import Epoch

X = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long()
RECIPE = ss.Recipe(epochs=3, batch_size=32, threads=1, device="cpu")


def study(**options):
    return optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=1), **options)


def by_optuna(trial, method, names):
    """The hyperparameters by Optuna's own calls."""
    found = {}
    for name in names:
        match domains(get_extractor(method))[name]:
            case Real(low, high, log):
                found[name] = trial.suggest_float(f"extractor.{name}", low, high, log=log)
            case Int(low, high, log):
                found[name] = trial.suggest_int(f"extractor.{name}", low, high, log=log)
            case OneOf(choices=choices):
                found[name] = trial.suggest_categorical(f"extractor.{name}", choices)
    return found


def score(extractor):
    return -abs(extractor["drop_fraction"] - 0.2)


def test_the_parameters_are_those_of_optunas_own_calls():
    ours, theirs = study(), study()
    names = [name for name in domains(get_extractor("rigl")) if name != "density"]
    ours.optimize(lambda trial: score(ss.suggest(trial, "rigl", density=0.1).model_dump()), n_trials=15)  # TPE from trial 10
    theirs.optimize(lambda trial: score(by_optuna(trial, "rigl", names)), n_trials=15)
    assert [trial.params for trial in ours.trials] == [trial.params for trial in theirs.trials]
    assert ours.trials[0].distributions == theirs.trials[0].distributions
    extractor = ss.suggest(ours.ask(), "rigl", density=0.1)
    assert (type(extractor), extractor.density) == (get_extractor("rigl"), 0.1)


def test_parameters_are_named_and_conditional_as_in_a_study():
    for given, method in (
        ({"extractor": "all"}, "granet"),
        ({"extractor": {"choice": ["granet", "snip"]}}, ["granet", "snip"]),
        ({"extractor": {"choice": {"granet": ["end"], "snip": "all"}}}, {"granet": ["end"], "snip": "all"}),
    ):
        space, ours, theirs = Space(given, RunConfig(extractor=create("granet"))), study(), study()
        for _ in range(6):
            one, other = ours.ask(), theirs.ask()
            extractor, values = ss.suggest(one, method), space.suggest(other)
            assert one.params == other.params
            assert one.distributions == other.distributions
            assert extractor == space.config(values).extractor
    assert ss.suggest(ours.ask(), "rigl", density=ss.Real(0.2, 0.3), grow="random").grow == "random"
    assert ours.trials[-1].distributions["extractor.density"] == optuna.distributions.FloatDistribution(0.2, 0.3)


def test_a_fixed_and_a_frozen_trial_give_the_extractor_again():
    ours = study()
    found = ss.suggest(trial := ours.ask(), ["rigl", "snip"])
    ours.tell(trial, 1.0)
    assert isinstance(ours.best_trial, FrozenTrial)
    for again in (ours.best_trial, FixedTrial(ours.best_params)):
        assert ss.suggest(again, ["rigl", "snip"]) == found
        ss.report_to(again)(epoch(1, 0.5))  # accepted, and never pruned


def epoch(number, accuracy, reached=True):
    return Epoch(number, number, 0.0, {"val_accuracy": accuracy, "val_nll": 1.0}, 0.1, 0.1, 0.0, reached)


def test_the_median_pruner_stops_a_run():
    net = nn.Linear(8, 2)

    def objective(trial):
        labels = Y if trial.number < 2 else torch.arange(200) % 2  # the last: labels without information
        extractor = ss.suggest(trial, "snip", scope="global")
        subnet = ss.extract(net, (X, labels), extractor, recipe=RECIPE, on_epoch=ss.report_to(trial))
        return subnet.summary()["val_accuracy"]

    ours = study(pruner=optuna.pruners.MedianPruner(n_startup_trials=2))
    ours.optimize(objective, n_trials=3)
    assert [trial.state.name for trial in ours.trials] == ["COMPLETE", "COMPLETE", "PRUNED"]
    assert list(ours.trials[0].intermediate_values) == [1, 2, 3]
    assert list(ours.trials[2].intermediate_values) == [1]


def test_an_epoch_before_the_density_is_reached_is_not_reported():
    ours = study(pruner=optuna.pruners.ThresholdPruner(lower=0.4))
    report = ss.report_to(trial := ours.ask())
    report(epoch(1, 0.1, reached=False))
    report(epoch(2, 0.5))
    ss.report_to(trial, "val_of_mine")(replace(epoch(3, 0.5), metrics={"val_of_mine": 1.0}))
    assert ours.trials[0].intermediate_values == {2: 0.5, 3: 1.0}
    with pytest.raises(optuna.TrialPruned, match="after epoch 4"):
        report(epoch(4, 0.3))
    with pytest.raises(UserError, match=r"unknown metric 'val_f1'"):
        ss.report_to(trial, "val_f1")(epoch(5, 0.5))
    with pytest.raises(UserError, match="one objective only"):
        ss.report_to(optuna.create_study(directions=["minimize"] * 2).ask())
    with pytest.raises(UserError, match=r"val_accuracy is to maximize, but the study is to minimize, .*direction='maximize'"):
        ss.report_to(optuna.create_study().ask())(epoch(1, 0.5))
    with pytest.raises(UserError, match="val_nll is to minimize, but the study is to maximize"):
        ss.report_to(study().ask(), "val_nll")(epoch(1, 0.5))
    ss.report_to(optuna.create_study().ask(), "val_nll")(epoch(1, 0.5))


def test_the_leading_metric_of_a_task_of_ones_own_is_reported():
    class Distance:
        leading, directions = "far", {"near": "minimize", "far": "maximize"}

        def loss(self, network, batch):
            return network(batch[0]).square().mean()

        def metrics(self, network, batch):
            return {"near": torch.tensor(1.0), "far": torch.tensor(2.0)}

    trial = study().ask()
    ss.extract(nn.Linear(8, 2), (X, Y), "snip", recipe=RECIPE, task=Distance(), on_epoch=ss.report_to(trial))
    assert set(trial.study.trials[0].intermediate_values.values()) == {2.0}


@pytest.mark.parametrize(
    ("extractor", "fixed", "message"),
    [
        ("rigls", {}, "did you mean 'rigl'"),
        ("rigl", {"densiti": 0.1}, "did you mean 'density'"),
        ("rigl", {"density": 3.0}, "less than or equal to 1"),
        (["rigl", "snip"], {"every": 3}, "unknown hyperparameter of snip 'every'"),
        ([], {}, r"the name of a method, or of several; got \[\]"),
        (create("rigl"), {}, "the name of a method"),
        ({"rigl": ["nope"]}, {}, "unknown hyperparameter of rigl 'nope'"),
    ],
)
def test_what_cannot_be_suggested_is_one_line(extractor, fixed, message):
    with pytest.raises(UserError, match=message) as raised:
        ss.suggest(study().ask(), extractor, **fixed)
    assert "\n" not in str(raised.value)
