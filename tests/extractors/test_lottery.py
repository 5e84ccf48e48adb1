"""Pruning by magnitude along a run: once, in rounds, with rewinding, and gradually."""

from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from toys import conv_bn, mlp, pictures, points, run_config, supernet, units

from subnet_search import Masks, RunConfig
from subnet_search.core.errors import Interrupted
from subnet_search.data import Batches
from subnet_search.extraction.config_file import check
from subnet_search.extractors import Clock, create
from subnet_search.extractors.base import Change
from subnet_search.topology.schedules import cubic
from subnet_search.topology.select import count
from subnet_search.training import train
from subnet_search.training.loop import Run, make_optimizer

WEIGHTS = [1, -8, 3, -6, 5, -4, 7, -2]


def prunings(extractor, total, weights):
    """What is kept of eight weights, by the step that it happens at. `weights`: their values at each of the changes."""
    method, masks, values, found = create(extractor), Masks({"w": torch.ones(8, dtype=torch.bool)}), iter(weights), {}
    current = next(values)
    for step in range(total):
        net = SimpleNamespace(weights={"w": torch.tensor(current).float() * masks["w"]}, masks=masks, units=units(masks))
        change = method.step(net, Clock(step, total, 0))
        if change:
            masks = change.masks
            found[step] = "".join(map(str, masks["w"].int().tolist()))
            current = next(values, current)
    return found


def test_magnitude_at_once():
    # Half of 40 steps, then the highest four of |w|: 8, 7, 6, 5.
    found = prunings({"name": "magnitude", "density": 0.5}, 40, [WEIGHTS])
    assert found == {20: "01011010"}


def test_magnitude_in_three_rounds():
    # Between steps 20 and 30, three times to a half of what was left: (8 7 6 5), (8 7), (8).
    found = prunings({"name": "magnitude", "density": 0.125, "rounds": 3}, 40, [WEIGHTS])
    assert found == {20: "01011010", 25: "01000010", 30: "01000000"}


def test_magnitude_looks_again_at_what_is_left():
    # After the first round the order of the survivors turns round: 8 7 6 5 at places 1 6 3 4 become 1 2 3 4.
    after = [9, 1, 9, 3, 4, 9, 2, 9]  # the dead stay dead, whatever they would be
    found = prunings({"name": "magnitude", "density": 0.125, "rounds": 3}, 40, [WEIGHTS, after, after])
    assert found == {20: "01011010", 25: "00011000", 30: "00001000"}


def test_lottery_in_three_rounds():
    # Four times as long as one another: prunings after 10, 20 and 30 of 40 steps.
    found = prunings({"name": "lottery", "density": 0.125, "rounds": 3}, 40, [WEIGHTS])
    assert found == {10: "01011010", 20: "01000010", 30: "01000000"}


def test_lottery_rounds_begin_at_the_step_rewound_to():
    # From step 4 on, 36 steps are shared by four rounds: 4 + 9, 13 + 9, 22 + 9.
    found = prunings({"name": "lottery", "density": 0.125, "rounds": 3, "rewind_to": 4}, 40, [WEIGHTS])
    assert list(found) == [13, 22, 31]
    assert list(prunings({"name": "lottery", "rewind_to": 0.1}, 40, [WEIGHTS])) == [13, 22, 31]


def test_gmp_of_eight_weights():
    # 1/8 + 7/8 (1 - t)^3 of eight weights at t = 1/4, 1/2, 3/4, 1: 3.95, 1.88, 1.11, 1.
    found = prunings({"name": "gmp", "density": 0.125, "start": 0, "end": 4, "every": 1}, 40, [WEIGHTS])
    assert found == {1: "01011010", 2: "01000010", 3: "01000000", 4: "01000000"}


@pytest.mark.parametrize("rewind", ["weights", "both"])
def test_rewound_weights_of_eight(rewind):
    # One layer that held 1 to 8 at the rewind step and trained on; a pruning keeps the even ones, at their values then.
    net = torch.nn.Sequential(torch.nn.Linear(4, 2))
    anchor = torch.arange(1.0, 9.0).view(2, 4)
    with torch.no_grad():
        net[0].weight.copy_(anchor)
        net[0].bias.copy_(torch.tensor([0.5, -0.5]))
    whole = supernet({"name": "lottery", "rewind": rewind}, net, epochs=8)
    data = points(40, inputs=4, classes=2)
    run = Run(whole, data, Batches(data.train, None, None, 20, 0), 0, None)
    whole.keep_rewind_state()
    with torch.no_grad():
        net[0].weight.mul_(-3).add_(1)
        net[0].bias.add_(2)
    keep = torch.tensor([[False, True, False, True], [False, True, False, True]])
    run.make(Change(Masks({"0.weight": keep}), rewind=rewind))
    assert whole.weights["0.weight"].tolist() == [[0, 2, 0, 4], [0, 6, 0, 8]]
    assert net[0].bias.tolist() == [0.5, -0.5]


def test_nothing_grows_back_where_shares_are_rounded():
    """The Alabama paradox: with one weight less in all, largest remainders can give a layer one more."""
    # Three layers of 6, 6 and 2. Eleven weights are shared as 4.71 + 4.71 + 1.57 = 5 + 5 + 1, ten as 4.29 + 4.29 + 1.43
    # = 4 + 4 + 2: the last layer would have its dead weight back.
    masks = Masks({name: torch.ones(size, 1, dtype=torch.bool) for name, size in {"a": 6, "b": 6, "c": 2}.items()})
    scores = {name: torch.arange(1.0, len(mask) + 1).view(-1, 1) for name, mask in masks.items()}
    eleven = units(masks).keep(scores, 11 / 14, "uniform", masks)
    assert [int(mask.sum()) for mask in eleven.values()] == [5, 5, 1]
    ten = units(masks).keep(scores, 10 / 14, "uniform", eleven)
    assert ten.kept == 10
    assert (ten & eleven).same(ten)


def trained(extractor, data=None, net=None, on_step=None, **recipe):
    """Train, and return the supernet and the outcome; `on_step` gets the supernet and the step."""
    whole = supernet(extractor, net or mlp(), **{"epochs": 4, "batch_size": 30, **recipe})
    watch = (lambda clock: on_step(whole, clock.step)) if on_step else None
    return whole, train(whole, data or points(), 0, on_step=watch)


@pytest.mark.parametrize("scope", ["global", "uniform", "erk"])
@pytest.mark.parametrize("name", ["magnitude", "lottery", "gmp"])
def test_density_falls_round_by_round(name, scope):
    """36 steps: exact counts after every change, and what is dropped never comes back."""
    seen = []
    settings = {"name": name, "density": 0.05, "scope": scope}
    if name == "gmp":
        settings |= {"start": 3, "end": 30, "every": 2}
        moves = [5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 30]
        densities = [cubic(1.0, 0.05, (step - 3) / 27) for step in moves]
    else:
        settings |= {"rounds": 3}
        moves = [9, 18, 27] if name == "lottery" else [18, 22, 27]
        densities = [0.05 ** (1 / 3), 0.05 ** (2 / 3), 0.05]
    trained(settings, on_step=lambda whole, step: seen.append(whole.masks))
    expected = [416] * (moves[0] - 1)  # a change after so many steps is seen with the last of them, counted from 0
    for step, end, density in zip(moves, [*moves[1:], 37], densities, strict=True):
        expected += [count(density, 416)] * (end - step)
    assert [masks.kept for masks in seen] == expected
    assert expected[-1] == 21
    for before, after in zip([seen[0], *seen], seen, strict=False):
        assert (before & after).same(after)


@pytest.mark.parametrize(("end", "last"), [(0.5, 18), (20, 20), (1.0, 35), (36, 35)])
@pytest.mark.parametrize("every", [1, 7, 0.01, 0.3, 35])
def test_gmp_ends_exactly(end, last, every):
    """At `end` (before the run's last step at the latest), however the interval falls."""
    kept = []
    trained(
        {"name": "gmp", "density": 0.03, "end": end, "every": every}, on_step=lambda whole, _: kept.append(whole.masks.kept)
    )
    assert kept[last - 1 :] == [count(0.03, 416)] * (37 - last)
    assert kept == sorted(kept, reverse=True)


def test_magnitude_prunes_what_it_is_given_when_nothing_is_trained():
    whole, outcome = trained({"name": "magnitude", "density": 0.1, "rounds": 3}, epochs=0)
    assert outcome.steps == 0
    largest = torch.cat([weight.abs().reshape(-1) for weight in mlp().state_dict().values()]).sort(descending=True).values[42]
    for name, weight in mlp().named_parameters():
        if name.endswith("weight"):
            assert torch.equal(whole.masks[name], weight.abs() > largest)


# Pictures in batches of 32: 3 steps an epoch, 24 in eight epochs. Two rounds prune at 8 and 16, from step 3 on at 10 and 17.
def rewinding(rewind, rewind_to=0, **more):
    return {"name": "lottery", "density": 0.2, "rounds": 2, "rewind": rewind, "rewind_to": rewind_to, **more}


SETTINGS = {"epochs": 8, "batch_size": 32, "lr": 0.05}


def copied(net):
    return {name: value.detach().clone() for name, value in net.state_dict().items()}


def conv():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return conv_bn()


def states(extractor, net, **recipe):
    """The network's state, biases and running statistics included, before the first step and after each; and the masks."""
    found, masks = [copied(net)], [None]
    whole = supernet(extractor, net, **{**SETTINGS, **recipe})

    def watch(clock):
        found.append(copied(net))
        masks.append(whole.masks)

    train(whole, pictures(), 0, on_step=watch)
    return found, masks


@pytest.mark.parametrize("rewind", ["weights", "both"])
@pytest.mark.parametrize(("rewind_to", "anchor", "points"), [(0, 0, (8, 16)), (3, 3, (10, 17)), (0.125, 3, (10, 17))])
def test_weights_go_back_to_the_bit(rewind, rewind_to, anchor, points):
    found, masks = states(rewinding(rewind, rewind_to), conv())
    assert "1.running_mean" in found[0]
    for step in points:
        before, after, kept = found[step - 1], found[step], masks[step]
        for name, then in found[anchor].items():
            expected = then * kept[name] if name in kept else then
            assert torch.equal(after[name], expected), (step, name)
        assert not torch.equal(before["1.running_mean"], after["1.running_mean"])
        assert not torch.equal(before["5.bias"], after["5.bias"])


def before_changes(monkeypatch, look):
    """What `look` finds just before each change that is made while a network trains, by the number of steps done."""
    found, make = {}, Run.make

    def making(run, change):
        if run.progress.step:
            found[run.progress.step] = look(run)
        make(run, change)

    monkeypatch.setattr(Run, "make", making)
    return found


@pytest.mark.parametrize("rewind", ["none", "schedule"])
def test_weights_stay_where_they_are_not_rewound(rewind, monkeypatch):
    trained = before_changes(monkeypatch, lambda run: copied(run.supernet.net))  # the optimizer's step has been made
    found, masks = states(rewinding(rewind, 3), conv())
    assert list(trained) == [10, 17]
    for step, before in trained.items():
        after, kept = found[step], masks[step]
        assert kept.density == pytest.approx(0.2 ** (0.5 if step == 10 else 1), abs=0.01)
        assert not torch.equal(before["0.weight"], found[step - 1]["0.weight"])
        for name, then in before.items():
            assert torch.equal(after[name], then * kept[name] if name in kept else then), name


def rates(monkeypatch, extractor, **recipe):
    """The learning rate of every step that the optimizer makes."""
    found = []

    def noting(*settings):
        made = make_optimizer(*settings)
        made.register_step_pre_hook(lambda optimizer, args, kwargs: found.append(optimizer.param_groups[0]["lr"]))
        return made

    monkeypatch.setattr("subnet_search.training.loop.make_optimizer", noting)
    whole = supernet(extractor, conv(), **{**SETTINGS, "schedule": "cosine", **recipe})
    return found, train(whole, pictures(), 0)


@pytest.mark.parametrize("rewind", ["schedule", "both"])
@pytest.mark.parametrize(("anchor", "first", "second"), [(0, 8, 16), (3, 10, 17)])
def test_the_schedule_runs_in_every_round(rewind, anchor, first, second, monkeypatch):
    found, outcome = rates(monkeypatch, rewinding(rewind, anchor))
    curve = supernet("random", schedule="cosine").recipe.rate
    whole = [0.05 * curve(step / (first - 1)) for step in range(first)]  # 1 at the start, 0 before the first pruning
    assert len(found) == 24  # every step is trained
    assert found[:first] == pytest.approx(whole)
    assert found[0] == 0.05
    assert found[first - 1] == pytest.approx(0)
    # After a pruning the round goes on from the anchor's place in the schedule.
    assert found[first:second] == pytest.approx(whole[anchor : anchor + second - first])
    assert found[second:] == pytest.approx(whole[anchor : anchor + 24 - second])
    assert [epoch.lr for epoch in outcome.history] == found[2::3]


@pytest.mark.parametrize("rewind", ["none", "weights"])
def test_the_schedule_goes_on_where_it_is_not_rewound(rewind, monkeypatch):
    found, _ = rates(monkeypatch, rewinding(rewind))
    curve = supernet("random", schedule="cosine").recipe.rate
    assert found == pytest.approx([0.05 * curve(step / 23) for step in range(24)])


def momenta(optimizer):
    """The momentum of every parameter that has any, by the order of the parameters."""
    return [
        value.clone()
        for parameter in optimizer.param_groups[0]["params"]
        for key, value in optimizer.state.get(parameter, {}).items()
        if key in ("momentum_buffer", "exp_avg", "exp_avg_sq")
    ]


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("rewind", ["none", "weights", "schedule", "both"])
def test_momentum_begins_afresh_after_weights_are_rewound(rewind, optimizer, monkeypatch):
    made, found, masks = [], [None], [None]
    trained = before_changes(monkeypatch, lambda run: momenta(run.optimizer))
    monkeypatch.setattr("subnet_search.training.loop.make_optimizer", lambda *a: made.append(make_optimizer(*a)) or made[-1])
    whole = supernet(rewinding(rewind), mlp(), epochs=4, batch_size=30, optimizer=optimizer, lr=0.01)

    def watch(clock):
        found.append(momenta(made[-1]))
        masks.append(whole.masks)

    train(whole, points(), 0, on_step=watch)  # 36 steps
    assert list(trained) == [12, 24]
    for step in trained:
        assert trained[step]
        if rewind in ("weights", "both"):
            assert found[step] == []
            continue
        kinds = len(found[step]) // 4  # of state, for two weights and two biases
        for index, (before, after) in enumerate(zip(trained[step], found[step], strict=True)):
            name = ["0.weight", "0.bias", "2.weight", "2.bias"][index // kinds]
            assert torch.equal(after, before * masks[step][name] if name in masks[step] else before)
    assert len(made) == (3 if rewind in ("weights", "both") else 1)


@pytest.mark.parametrize(("rewind", "kept"), [("none", False), ("weights", True), ("both", True)])
def test_the_rewind_state_is_kept_from_its_step_on(rewind, kept):
    seen = []
    whole, _ = trained(rewinding(rewind, 5), on_step=lambda whole, step: seen.append(bool(whole.rewind_state)))
    assert seen == [kept and step >= 5 for step in range(36)]
    assert any(name.startswith("rewind_state.") for name in whole.state()) is kept


def test_a_state_with_the_name_before_0_1_0_is_read():
    whole, _ = trained(rewinding("weights", 5))
    again = supernet(rewinding("weights", 5), mlp(), epochs=4, batch_size=30)
    again.load_state({name.replace("rewind_state.", "anchor."): value for name, value in whole.state().items()})
    assert again.rewind_state.keys() == whole.rewind_state.keys() != set()
    assert all(torch.equal(again.state()[name], value) for name, value in whole.state().items())


@pytest.mark.parametrize("name", ["magnitude", "gmp", "random", "rigl", "ac_dc"])
def test_nothing_is_kept_where_nothing_rewinds(name):
    whole, _ = trained(name)
    assert whole.rewind_state == {}


@pytest.mark.parametrize(
    ("rewind", "stop"),
    [*[("both", stop) for stop in (2, 3, 4, 10, 11, 14, 20)], *[(rewind, 14) for rewind in ("none", "weights", "schedule")]],
)
def test_killed_in_a_round_and_resumed(rewind, stop, tmp_path):
    """The rewind state is saved at step 3, the network pruned at 10 and 17: before, at and after each."""
    recipe = {**SETTINGS, "schedule": "cosine", "augment": ("flip",)}
    whole, part, again = (supernet(rewinding(rewind, 3), conv(), **recipe) for _ in range(3))
    outcome = train(whole, pictures(), 0)
    seen, path = [], tmp_path / "state.safetensors"
    with pytest.raises(Interrupted, match=f"step {stop} of 24"):
        train(part, pictures(), 0, checkpoint=path, on_step=seen.append, should_stop=lambda: len(seen) == stop)
    with safe_open(path, "pt") as file:
        anchored = "rewind_state.0.weight" in file.keys()  # noqa: SIM118  a file, not a mapping
        assert anchored == (stop > 3) or rewind in ("none", "schedule")
    rest = train(again, pictures(), 0, checkpoint=path, resume=True)
    assert again.state().keys() == whole.state().keys()
    assert all(torch.equal(again.state()[name], value) for name, value in whole.state().items())
    assert again.passes == whole.passes
    clean = [[(e.step, e.train_loss, e.metrics["val_nll"], e.density, e.lr) for e in out.history] for out in (outcome, rest)]
    assert clean[0] == clean[1]


def test_rewinds_differ():
    """Four settings, four results: none of them is a different spelling of another."""
    recipe = {"epochs": 8, "batch_size": 32, "lr": 0.05, "schedule": "cosine", "threads": 1, "device": "cpu"}
    found = {
        rewind: run_config(
            check(RunConfig, {"extractor": rewinding(rewind, 3), "recipe": recipe}), module=conv(), data=pictures()
        )
        for rewind in ("none", "weights", "schedule", "both")
    }
    assert len({subnet.sha256 for subnet in found.values()}) == 4
    assert len({subnet.metrics["steps"] for subnet in found.values()}) == 1


SPARSE = [
    {"name": "gmp", "end": 0.6},
    {"name": "magnitude", "rounds": 2},
    {"name": "lottery", "rounds": 3},
    {"name": "lottery", "rounds": 3, "rewind": "none"},
    {"name": "granet", "end": 0.6},
    {"name": "cht", "initial_density": 0.5, "end": 0.6},
    {"name": "ac_dc", "every": 9, "start": 18},  # an epoch dense, then one compressed and one not in turn
]


@pytest.mark.parametrize("patience", [1, 3])
@pytest.mark.parametrize("extractor", SPARSE, ids=lambda extractor: extractor["name"])
def test_early_stopping_keeps_what_was_asked_for(extractor, patience):
    """At 2 % the network is worse than it was before: the epochs to go back to would be the dense ones, and are not."""
    whole, outcome = trained({"density": 0.02, **extractor}, epochs=12, patience=patience)
    assert whole.masks.kept == count(0.02, 416)
    sparse = [epoch for epoch in outcome.history if epoch.density == whole.masks.density]
    best = max(sparse, key=lambda epoch: epoch.metrics["val_accuracy"])
    assert outcome.epoch == best.epoch
    assert outcome.val["accuracy"] == best.metrics["val_accuracy"]
    dense = max(epoch.metrics["val_accuracy"] for epoch in outcome.history if epoch.density > whole.masks.density)
    assert dense > best.metrics["val_accuracy"]
    assert len(outcome.history) == min(12, best.epoch + patience)
