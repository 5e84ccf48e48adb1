"""What cannot be done is said in one line before anything is trained; what dies on the way is said by name."""

import logging
import re

import pytest
import torch
from torch import nn
from toys import mlp, points, run_config

from subnet_search import RunConfig
from subnet_search.cli import main
from subnet_search.core.errors import RunError, UserError
from subnet_search.extraction.config_file import check
from subnet_search.nets import initialise

FEWER = "density 0.003 keeps 1 of 416 weights, fewer than the network's 2 layers"
LONGER = "an interval of 18 steps is longer than the run of 18"
AFTER = "step 19 is after the end of the run of 18 steps"


def config(extractor, epochs=2, batch_size=30, **recipe):
    recipe = {"epochs": epochs, "batch_size": batch_size, "threads": 1, "device": "cpu", **recipe}
    return check(RunConfig, {"extractor": extractor, "recipe": recipe})


def refused(folder, extractor, net=None, error=UserError, **recipe):
    """The one line that a run is refused with, before its first step. 18 steps of 30 images, on 416 weights in 2 layers."""
    steps = []
    with pytest.raises(error) as caught:
        run_config(config(extractor, **recipe), folder / "run", module=net or mlp(), data=points(), on_step=steps.append)
    assert steps == []
    assert list(folder.iterdir()) == []
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


@pytest.mark.parametrize("shares", ["erk", "uniform"])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        *[(name, "allocation") for name in ("random", "rigl", "set", "mest")],
        *[(name, "scope") for name in ("gmp", "magnitude", "lottery", "ac_dc")],
    ],
)
def test_a_density_that_leaves_layers_empty(name, key, shares, tmp_path):
    """Layers that get their share of the density each keep a weight at least: here the two have one between them."""
    assert refused(tmp_path, {"name": name, "density": 0.003, key: shares}) == FEWER


@pytest.mark.parametrize(
    "extractor", [{"name": "cht"}, {"name": "granet", "initial_density": 0.003}, {"name": "shuffled", "source": "random"}]
)
def test_a_first_density_that_leaves_layers_empty(extractor, tmp_path):
    assert refused(tmp_path, {**extractor, "density": 0.003}) == FEWER


def test_a_density_that_leaves_layers_empty_without_training(tmp_path):
    assert refused(tmp_path, {"name": "magnitude", "density": 0.003, "scope": "erk"}, epochs=0) == FEWER


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("gmp", "end"),
        ("granet", "end"),
        ("cht", "end"),
        ("ac_dc", "end"),
        ("rigl", "until"),
        ("set", "until"),
        ("mest", "until"),
        ("magnitude", "start"),
    ],
)
def test_a_phase_that_ends_after_the_run(name, key, tmp_path):
    assert refused(tmp_path, {"name": name, key: 19}) == f"{name}.{key}: {AFTER}"
    run_config(config({"name": name, key: 18}), module=mlp(), data=points())  # its last step will do


def test_rounds_that_end_after_the_run(tmp_path):
    assert refused(tmp_path, {"name": "magnitude", "rounds": 2, "end": 19}) == f"magnitude.end: {AFTER}"


@pytest.mark.parametrize("name", ["gmp", "granet", "ac_dc"])
def test_a_phase_that_ends_before_it_starts(name, tmp_path):
    said = refused(tmp_path, {"name": name, "start": 10, "end": 9})
    assert said == f"{name}.end: step 9 is before the start, step 10"


@pytest.mark.parametrize("name", ["rigl", "set", "gmp", "granet", "mest", "ac_dc", "cht"])
def test_an_interval_longer_than_the_run(name, tmp_path):
    assert refused(tmp_path, {"name": name, "every": 18}) == f"{name}.every: {LONGER}"
    run_config(config({"name": name, "every": 17}), module=mlp(), data=points())


def test_more_rounds_than_steps(tmp_path):
    said = refused(tmp_path, {"name": "lottery", "rounds": 18})
    assert said == "lottery: 18 rounds need more than the run's 18 steps"
    assert "17 rounds need more" in refused(tmp_path, {"name": "lottery", "rounds": 17, "rewind_to": 1})
    said = refused(tmp_path, {"name": "magnitude", "rounds": 6, "start": 9, "end": 13})
    assert said == "magnitude: 6 rounds do not fit between steps 9 and 13"


@pytest.mark.parametrize(
    "extractor", [{"name": "lottery", "rounds": 17}, {"name": "magnitude", "rounds": 5, "start": 9, "end": 13}]
)
def test_as_many_rounds_as_fit(extractor):
    subnet = run_config(config(extractor), module=mlp(), data=points())
    assert subnet.masks.kept == 42


@pytest.mark.parametrize("rewind_to", [18, 100, 1.0])
def test_a_rewind_to_a_step_that_is_not_in_the_run(rewind_to, tmp_path):
    assert "rounds need more than the run's 18 steps" in refused(tmp_path, {"name": "lottery", "rewind_to": rewind_to})


@pytest.mark.parametrize("name", ["snip", "grasp", "snip_iterative"])
@pytest.mark.parametrize("epochs", [0, 2])
def test_a_probe_batch_larger_than_the_data(name, epochs, tmp_path):
    said = refused(tmp_path, {"name": name, "images": 271}, epochs=epochs)
    assert said == "a probe batch of 271 images is larger than the training data, 270"


@pytest.mark.parametrize(
    ("extractor", "worth"),
    [
        ({"name": "snip_iterative", "rounds": 19}, 19),
        ({"name": "synflow", "rounds": 541}, 19),  # inputs, 30 to a step
        ({"name": "snip_iterative", "rounds": 3, "images": 270}, 27),
        ({"name": "shuffled", "source": {"name": "snip_iterative", "rounds": 19}}, 19),
    ],
)
def test_probes_worth_more_than_the_run(extractor, worth, tmp_path):
    said = refused(tmp_path, extractor)
    assert said == f"the gradients of {extractor['name']} before training cost {worth} steps, but the run has 18"


def test_two_passes_in_a_run_of_one_step(tmp_path):
    said = refused(tmp_path, "grasp", epochs=1, batch_size=270)
    assert said == "the gradients of grasp before training cost 2 steps, but the run has 1"


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(10))

    def forward(self, inputs):
        return inputs * self.weight


@pytest.mark.parametrize("name", ["snip", "synflow", "lottery", "gmp", "random"])
def test_a_network_without_prunable_layers(name, tmp_path):
    assert refused(tmp_path, name, Scale()).startswith("Scale has no prunable weights")


@pytest.mark.parametrize("name", ["snip", "synflow", "lottery", "gmp", "random"])
def test_a_weight_with_two_names(name, tmp_path):
    net = nn.Sequential(nn.Linear(10, 10), nn.ReLU(), nn.Linear(10, 10))
    net[2].weight = net[0].weight
    said = refused(tmp_path, name, net)
    assert said == "Sequential shares one weight tensor under two names; one of them is '2.weight'"


@pytest.mark.parametrize("name", ["granet", "cht"])
def test_a_first_density_below_the_last(name, tmp_path):
    said = refused(tmp_path, {"name": name, "density": 0.3, "initial_density": 0.2})
    assert said == f"{name}.initial_density 0.2 is below the density 0.3"


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("gmp", "end"),
        ("granet", "end"),
        ("cht", "end"),
        ("ac_dc", "end"),
        ("rigl", "until"),
        ("set", "until"),
        ("mest", "until"),
    ],
)
def test_a_method_that_works_while_it_trains_in_no_epochs(name, key, tmp_path):
    assert refused(tmp_path, name, epochs=0) == f"{name}.{key}: this method works while it trains, and recipe.epochs is 0"


def test_rounds_of_training_in_no_epochs(tmp_path):
    assert refused(tmp_path, "lottery", epochs=0) == "lottery: 3 rounds need more than the run's 0 steps"


def test_a_mistake_takes_no_folder_that_was_there(tmp_path):
    """Only what the run itself had made goes."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="after the end"):
        run_config(config({"name": "gmp", "end": 19}), tmp_path / "run", module=mlp(), data=points())
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("extractor", ["gmp", "magnitude", "lottery", {"name": "rigl", "every": 2}, "granet", "cht", "ac_dc"])
def test_a_loss_that_is_no_number_is_an_error_of_the_run(extractor):
    """Scores of weights that are not numbers cannot be ranked; that is found before the loss is looked at."""
    with pytest.raises(RunError, match="try a lower learning rate") as caught:
        run_config(config(extractor, lr=1e30), module=mlp(), data=points())
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("name", ["snip", "grasp", "snip_iterative", "random"])
def test_data_that_is_no_number(name):
    data = points()
    data.train.inputs[:, 0] = float("nan")
    with pytest.raises((UserError, RunError)) as caught:
        run_config(config(name), module=mlp(), data=data)
    assert len(str(caught.value).splitlines()) == 1


# Layers that lose their last weight. The weights of one are a thousandth of the others, so by magnitude it goes first;
# and by |gradient * weight| also the one before it, whose gradient comes through it.
def faint():
    net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 10), nn.ReLU(), nn.Linear(10, 3))
    initialise(net, "kaiming_normal", 0)
    with torch.no_grad():
        net[2].weight.mul_(1e-3)
        net[2].bias.fill_(1.0)  # what follows is still fed
    return net


LOOP = "subnet_search.training.loop"


def collapse(extractor, caplog, **recipe):
    """A run on a network with a faint layer, and its warnings."""
    with caplog.at_level(logging.WARNING, LOOP):
        subnet = run_config(config(extractor, **recipe), module=faint(), data=points())
    return subnet, [record.getMessage() for record in caplog.records if record.name == LOOP]


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_layer_that_dies_before_training(epochs, caplog):
    subnet, said = collapse({"name": "snip", "density": 0.02}, caplog, epochs=epochs)
    assert said == ["layer collapse: no weight is left in 0, 2 (snip, step 0)"]  # once, not again every epoch
    assert subnet.summary()["collapsed"] == ["0.weight", "2.weight"]
    assert [density == 0 for density in subnet.summary()["layer_density"].values()] == [True, True, False]


def test_a_layer_that_dies_during_training(caplog):
    # With lr 1e-6 the weights stay as they are; a ramp to 5 % drops 0.95 of 670, so all of the faint 320.
    subnet, said = collapse({"name": "gmp", "density": 0.05, "start": 0, "end": 10, "every": 1}, caplog, lr=1e-6)
    # 0.05 + 0.95 (1 - t / 10)^3 falls below 350 / 670 at t = 3: the change after the third step.
    assert said == ["layer collapse: no weight is left in 2 (gmp, step 3)"]
    assert subnet.summary()["collapsed"] == ["2.weight"]


def test_two_layers_die_in_one_line(caplog):
    subnet, said = collapse({"name": "magnitude", "density": 0.0001}, caplog)  # one weight of 670 is left
    (line,) = said
    dead = line.removeprefix("layer collapse: no weight is left in ").removesuffix(" (magnitude, step 9)").split(", ")
    assert [f"{name}.weight" for name in dead] == subnet.summary()["collapsed"]
    assert len(dead) == 2
    assert "2" in dead


def test_no_warning_where_nothing_dies(caplog):
    subnet, said = collapse({"name": "synflow", "density": 0.05}, caplog)
    assert said == []
    assert subnet.summary()["collapsed"] == []


@pytest.mark.parametrize("epochs", [0, 2])
def test_a_collapse_that_is_not_allowed_before_training(epochs, tmp_path):
    said = refused(tmp_path, {"name": "snip", "density": 0.02}, faint(), epochs=epochs, allow_collapse=False)
    assert said == "layer collapse: no weight is left in 0, 2"


def test_a_collapse_that_is_not_allowed_during_training(tmp_path):
    settings = config({"name": "gmp", "density": 0.05, "start": 0, "end": 10, "every": 1}, lr=1e-6, allow_collapse=False)
    steps = []
    with pytest.raises(RunError) as caught:
        run_config(settings, tmp_path, module=faint(), data=points(), on_step=steps.append)
    assert str(caught.value) == "layer collapse: no weight is left in 2 at step 3"
    assert len(steps) == 2  # those before it
    assert not (tmp_path / "summary.json").exists()


def test_a_collapse_on_the_way_is_not_allowed_either():
    """AC/DC's compressed phase kills a layer and the next revives it: that too is a step at which a layer is dead."""
    settings = config({"name": "ac_dc", "density": 0.05}, lr=1e-6, allow_collapse=False)
    with pytest.raises(RunError, match="layer collapse: no weight is left in 2 at step 2"):
        run_config(settings, module=faint(), data=points())


def test_where_nothing_dies_a_collapse_may_be_forbidden():
    settings = config({"name": "synflow", "density": 0.05}, allow_collapse=False)
    assert run_config(settings, module=faint(), data=points()).metrics["collapsed"] == []


FAST = ["-s", "network=lenet_300_100", "-s", "recipe.epochs=1", "-s", "recipe.threads=1", "-s", "data.limit=100"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["extractor={name: gmp, end: 1000}"], "gmp.end: step 1000 is after the end of the run of 1 steps"),
        (["extractor={name: snip, images: 5000}"], "a probe batch of 5000 images is larger than the training data, 90"),
        (["extractor=lottery", "recipe.epochs=0"], "lottery: 3 rounds need more than the run's 0 steps"),
        (
            ["extractor={name: snip, density: 0.00001}", "recipe.allow_collapse=false"],
            "layer collapse: no weight is left in ",
        ),
    ],
)
def test_the_command_line_says_it_in_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    overrides = [part for word in words for part in ("-s", word)]
    with pytest.raises(SystemExit) as stopped:
        main(["extract", *FAST, *overrides])
    out, err = capsys.readouterr()
    assert stopped.value.code == 2
    assert out == ""
    assert re.fullmatch(rf"error: {re.escape(message)}.*\n", err)
    assert list(tmp_path.rglob("*.*")) == []  # nothing is left of the run


def test_the_command_line_says_what_died(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["extractor={name: magnitude, density: 0.00001}", "recipe.allow_collapse=false", "recipe.epochs=2"]
    with pytest.raises(SystemExit) as stopped:
        main(["extract", *FAST, *[part for word in words for part in ("-s", word)]])
    out, err = capsys.readouterr()
    assert stopped.value.code == 1  # a failure of the run, no mistake in what was asked for
    assert out == ""
    assert re.fullmatch(r"error: layer collapse: no weight is left in .* at step 1\n", err.splitlines(keepends=True)[-1])
    assert "Traceback" not in err
