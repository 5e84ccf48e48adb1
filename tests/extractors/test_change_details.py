"""Topology changes, in detail: when they are seen, by what they grow, and what a run says of raised intervals."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from toys import mlp, points, run_config, supernet

from subnet_search import Masks, RunConfig
from subnet_search.cli.render import format
from subnet_search.data import Batches, from_user
from subnet_search.extraction.config_file import check
from subnet_search.extractors import Clock
from subnet_search.extractors.base import Change
from subnet_search.training import loop, train
from subnet_search.training.loop import Run


def changes(name, monkeypatch):
    """When a method with `every` 3 is asked and changes something in ten steps; masks and weights before and after steps."""
    net = supernet({"name": name, "every": 3}, epochs=2, batch_size=32)
    asked, changed, found = [], [], []
    step, training_step = type(net.extractor).step, Run.step

    def asking(extractor, network, clock):
        change = step(extractor, network, clock)
        asked.append(clock.step)
        changed.extend([clock.step] if change else [])
        return change

    def copied():
        return net.masks, {name: weight.detach().clone() for name, weight in net.weights.items()}

    def stepping(run, clock):
        before = copied()
        training_step(run, clock)
        found.append((before, copied()))

    monkeypatch.setattr(type(net.extractor), "step", asking)
    monkeypatch.setattr(Run, "step", stepping)
    train(net, points(200), 0)
    return asked, changed, found


def test_a_change_is_there_with_the_step_before_its_own_number(monkeypatch):
    asked, changed, found = changes("set", monkeypatch)
    assert asked == list(range(11))  # before training, and after each of ten steps
    assert changed == [3, 6, 9]
    assert [index for index, ((before, _), (after, _)) in enumerate(found) if not before.same(after)] == [2, 5, 8]


def test_a_change_of_rigl_leaves_the_weights_that_stay_as_they_were(monkeypatch):
    asked, changed, found = changes("rigl", monkeypatch)
    assert asked == list(range(10))  # in every step, before the optimizer
    assert changed == [3, 6]  # 0.75 of ten at the latest
    for index, ((before, weights), (after, new)) in enumerate(found):
        for name, weight in weights.items():
            stay = before[name] & after[name]
            assert torch.equal(new[name][stay], weight[stay]) == (index in changed)


def test_granet_drops_by_weights_after_the_step_and_grows_by_gradients_from_before_masking():
    """Eight weights. x = (1, 2, 4, 8), label 0; the first row (8, -2, -3, 1) lives, the second is dead.

    Both logits are 0, so the gradient is -x / 2 in the first row and +x / 2 in the second. With a rate of 1/2 the first row
    becomes (8.25, -1.5, -2, 3). A quarter of four drops: now position 1 is the smallest, before the step it was 3. Of the
    dead, positions 1 and 4 to 7, gradients are 1 and 1/2, 1, 2, 4: position 7 grows. Were gradients masked, 1 would again.
    """
    module = nn.Sequential(nn.Linear(4, 2, bias=False))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[8.0, -2, -3, 1], [0, 0, 0, 0]]))
    method = {"name": "granet", "every": 1, "density": 0.5, "initial_density": 0.5}
    plain = {"lr": 0.5, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0, "schedule": "constant"}
    settings = {**method, "drop_fraction": 0.25, "final_drop_fraction": 0.25}
    net = supernet(settings, module, epochs=8, batch_size=20, **plain)
    whole = torch.tensor([[1.0, 2, 4, 8]]).repeat(36, 1), torch.arange(36) % 2
    data = from_user((whole, tuple(part.clone() for part in whole)))
    split = replace(data.train, labels=torch.zeros_like(data.train.labels))
    run = Run(net, data, Batches(split, None, None, 20, 0), 0, None)
    run.make(Change(Masks({"0.weight": torch.tensor([[True] * 4, [False] * 4])})))
    run.step(Clock(0, run.total, 0))
    assert net.masks["0.weight"].int().tolist() == [[1, 0, 1, 1], [0, 0, 0, 1]]
    torch.testing.assert_close(net.weights["0.weight"].detach(), torch.tensor([[8.25, 0, -2, 3], [0, 0, 0, 0]]))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_masking_after_the_step_gives_the_same_optimizer_state_across_changes(optimizer, monkeypatch):
    found, dense, optimize = [], [], loop._optimize

    def masked_before(net, optimizer):
        net.mask_gradients()
        optimizer.step()

    def masked_after(net, optimizer):
        optimize(net, optimizer)
        dense.append(any(weight.grad[~net.masks[name]].any() for name, weight in net.weights.items()))

    for how in (masked_after, masked_before):
        monkeypatch.setattr(loop, "_optimize", how)
        net = supernet("redraw", epochs=3, batch_size=32, lr=0.01, nesterov=optimizer == "sgd", optimizer=optimizer)
        data = points(400)
        run = Run(net, data, Batches(data.train, None, None, 32, 0), 0, None)
        with torch.random.fork_rng():
            run.begin()
            for step in range(run.total):
                run.step(Clock(step, run.total, 0))
        state = [(net.learned()[name], run.optimizer.state[net.learned()[name]]) for name in sorted(net.learned())]
        found.append(state)
    assert len(dense) == 33
    assert all(dense)  # what was masked after the step was not masked before
    for (weight, state), (twin, other) in zip(*found, strict=True):
        alive = weight != 0
        assert torch.equal(weight, twin)
        assert torch.equal(weight[alive].view(torch.int32), twin[alive].view(torch.int32))
        tensors = [key for key, value in state.items() if isinstance(value, torch.Tensor)]
        assert tensors
        assert all(torch.equal(state[key], other[key]) for key in tensors)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_decompression_of_ac_dc_begins_the_state_of_every_parameter_anew(optimizer):
    net = supernet(
        {"name": "ac_dc", "density": 0.5, "start": 3, "every": 3, "end": 9}, epochs=2, batch_size=20, optimizer=optimizer
    )
    data, filled = points(140), {}
    run = Run(net, data, Batches(data.train, None, None, 20, 0), 0, None)
    with torch.random.fork_rng():
        run.begin()
        for step in range(run.total):
            run.step(Clock(step, run.total, 0))
            filled[step + 1] = sum(bool(run.optimizer.state.get(parameter)) for parameter in net.net.parameters())
    # Compressed after 3 and 9 steps, decompressed after 6: none of two weights and two biases has any state then.
    assert filled == {done: 0 if done == 6 else 4 for done in range(1, run.total + 1)}


@pytest.mark.parametrize(("every", "said"), [(0.02, True), (1, False)])
def test_the_printed_record_says_which_intervals_were_raised(every, said):
    recipe = {"epochs": 4, "batch_size": 20, "threads": 1, "device": "cpu"}
    config = check(RunConfig, {"extractor": {"name": "set", "every": every}, "recipe": recipe})
    subnet = run_config(config, module=mlp(), data=points(340))
    with format.console.capture() as printed:
        format.subnetwork_summary(subnet.summary(), "weight")
    assert ("set.every to 10 steps, because the run is short" in printed.get()) is said
    assert ("raised intervals" in printed.get()) is said
