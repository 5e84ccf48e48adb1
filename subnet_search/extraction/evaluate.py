"""Evaluate a subnetwork or an exported network: accuracy, calibration, robustness, cost, latency."""

from pathlib import Path
from typing import Any, Literal

from torch import nn

from subnet_search.artifact import Subnetwork
from subnet_search.core.errors import UserError, shown
from subnet_search.deploy.benchmark import advice, measured, without_dead
from subnet_search.deploy.exported_network import Deployed
from subnet_search.deploy.normalised import Normalised, normalised
from subnet_search.deploy.rebuild import data_of, dense_of, task_of_run
from subnet_search.evaluation.corruption_files import benchmark_mean
from subnet_search.evaluation.cost import on_average
from subnet_search.evaluation.items import interval
from subnet_search.evaluation.robustness import check_noise, corruption_table, noise_curve
from subnet_search.extraction.against import Against, Ready, compared, corrupted_files, other_network, reference
from subnet_search.nets import opened
from subnet_search.tasks import Classification, inputs_sent


def evaluate(
    subnetwork: Subnetwork | Deployed,
    split: Literal["val", "test"] = "val",
    *,
    network: nn.Module | str | None = None,
    data: Any = None,
    task: Any = None,
    noise: bool = False,
    corruptions: bool | str | Path = False,
    latency: bool = False,
    against: Against | None = None,
) -> dict[str, Any]:
    """Evaluate on one split of the data; returns the record of the run with the new measurements.

    network       a module or `package.module:factory`; needed if the network is neither built in nor from torchvision
    data          another data set than the run's; images are normalised as in the run. Of data from Python without parts, the
                  split "test" is all of it
    task          the run's task, if it is one of your own: an object, or `package.module:Name`
    noise         add accuracy under uniform noise; for classification
    corruptions   add accuracy under common corruptions, by kind and severity; for classification. A folder: on the corrupted
                  images of its files, those of CIFAR-10-C, instead of images of the split
    latency       add medians and quartiles of a forward pass in milliseconds, at batch sizes 1, 16 and 256 on one CPU
                  thread, alternating with the dense network. With `unit: channel`, dead channels are removed first
                  (`compacted`)
    against       another network to compare with on the same items: a subnetwork or an exported network, the file of one, a
                  file with a state dict of the dense network, a module, or "dense": the network with the trained weights that
                  the run started from. Adds `against` (see `extraction.against.compared`), and to the rows of `noise` the
                  agreement and the functional distance

    Under `interval` is the 95 % bootstrap interval of the leading metric of a built-in task, over the items; for
    classification, `calibration` has the rows of a reliability diagram.

    Raises UserError if the split does not exist, or the network and data do not match.
    """
    if split not in ("val", "test"):
        raise UserError(f"split must be val or test, got {split!r}")
    if not isinstance(subnetwork, Subnetwork | Deployed):
        raise UserError(f"evaluate takes a subnetwork, ss.Subnetwork.load(path), got {shown(subnetwork)}")
    origin = subnetwork.origin
    dense = dense_of(subnetwork, network)
    net = subnetwork.on(dense).eval()
    task = task_of_run(subnetwork, task)
    if (noise or corruptions) and not isinstance(task, Classification):
        raise UserError(f"accuracy under noise and corruptions needs the task classification, got {task.name}")
    given = data_of(subnetwork, data, task, all_is_test=split == "test")
    one = origin.input_spec is None and not task.any_length
    this = Ready(net, origin, "the subnetwork")
    this.check_data(task, given)
    task.check_data(given)
    chosen = given.val if split == "val" else given.test()
    if chosen is None:
        raise UserError(f"{given.name} has no test split")
    if noise:
        check_noise(chosen)
    files = corrupted_files(corruptions, origin, chosen)
    other = None if against is None else other_network(against, subnetwork, network)
    if other:
        other.check_data(task, given)
    compare_with = reference(this, other) if other and noise else None
    if not one or origin.logits is None:
        inputs_sent(net, task, given.first(), outputs=task.outputs(given))  # raises UserError where the data does not fit
    with on_average(net, subnetwork.inputs(2)) as macs:
        found, items = this.measure(task, chosen)
    record = {**subnetwork.summary(), "split": split, "items": len(chosen), **found}
    if origin.dynamic:
        record["kept_macs"] = macs()
    if items is not None:
        record["interval"] = interval(items)
    if other:
        record["against"] = compared(task, (found, items), other.measure(task, chosen), other.name)
    if noise:
        record["noise"] = noise_curve(this.inner, compare_with, chosen, this.mean, this.std)
    if files:
        record["corruptions"] = files.table(this.inner, this.mean, this.std)
        record["corrupted_accuracy"] = benchmark_mean(record["corruptions"])
    elif corruptions:
        record["corruptions"] = corruption_table(this.inner, chosen, this.mean, this.std)
    if latency:
        record |= _timed(subnetwork, dense, net)
    return record


def _timed(subnetwork: Subnetwork | Deployed, dense: nn.Module, net: nn.Module) -> dict[str, Any]:
    """Latencies of both networks, whether this one is faster, and advice if it is not."""
    origin, exported = subnetwork.origin, isinstance(subnetwork, Deployed)
    timed = net if isinstance(subnetwork, Deployed) else without_dead(net, subnetwork)
    plain = opened(dense)  # a dynamic network without its gates
    if isinstance(net, Normalised):
        plain = normalised(plain, origin)
    rows = measured({"dense": plain, "exported": timed}, subnetwork.inputs)
    faster = any(row["faster"] for row in rows)
    return {
        "compacted": timed is not net,
        "latency": rows,
        "faster": faster,
        "advice": None if faster or exported else advice(origin.unit, "compact", net, subnetwork.inputs(2)),
    }
