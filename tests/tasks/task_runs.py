"""A short run of a task: whole, and stopped and resumed to the same bits, then evaluated and predicted from its file."""

import pytest

import subnet_search as ss
from subnet_search.core.errors import Interrupted
from subnet_search.extraction.config_file import check
from subnet_search.tasks import load_data

RECIPE = {"epochs": 3, "batch_size": 16, "lr": 0.1, "threads": 1, "device": "cpu"}


def config(task, method="snip", density=0.5, **recipe):
    found = {"task": task, "extractor": {"name": method, "density": density}, "recipe": {**RECIPE, **recipe}}
    return check(ss.RunConfig, found)


def stopped_and_resumed(settings, folder, net, data, stop, **more):
    """The result of a run that was stopped after `stop` steps."""
    seen = []
    with pytest.raises(Interrupted):
        ss.run(
            settings,
            folder,
            module=net,
            data=data,
            on_step=seen.append,
            should_stop=lambda: len(seen) == stop,
            **more,
        )
    return ss.run(settings, folder, module=net, data=data, resume=True, **more)


def whole_run(task, net, data, folder, stop=4, method="snip", recipe=None, **more):
    """The subnetwork of a run, read from its file, after all checks that hold for every task."""
    settings = config(task, method, **(recipe or {}))
    loaded = load_data(data, task)
    whole = ss.run(settings, folder / "whole", module=net, data=loaded, **more)
    resumed = stopped_and_resumed(settings, folder / "part", net, loaded, stop, **more)
    assert resumed.sha256 == whole.sha256
    found = ss.Subnetwork.load(folder / "whole" / "subnetwork.safetensors")
    assert found.sha256 == whole.sha256
    measured = ss.evaluate(found, network=net, data=loaded)
    for name in settings.task.directions:
        assert measured[name] == pytest.approx(whole.metrics[f"val_{name}"], rel=1e-5)
        assert resumed.metrics[f"val_{name}"] == whole.metrics[f"val_{name}"]
    return found


def refused(task, data, message, net):
    """A run is refused in one line, before training."""
    steps = []
    with pytest.raises(ss.UserError, match=message) as error:
        ss.run(config(task), module=net, data=load_data(data, task), on_step=steps.append)
    assert "\n" not in str(error.value)
    assert not steps
