"""Evaluate a subnetwork or an exported network: accuracy, calibration, robustness, isometry, cost, latency."""

from typing import Any, Literal

import torch
from torch import nn

from subnet_search.artifact import Subnetwork
from subnet_search.core.errors import UserError, shown
from subnet_search.data import in_order
from subnet_search.deploy.benchmark import advice, measured, without_dead
from subnet_search.deploy.exported_network import Deployed
from subnet_search.deploy.normalised import Normalised, normalised
from subnet_search.deploy.rebuild import data_of, dense_of, task_of_run
from subnet_search.evaluation.cost import on_average
from subnet_search.evaluation.robustness import check_corruptions, check_noise, corruption_table, noise_curve
from subnet_search.extraction.isometry import isometry_inputs, isometry_record
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
    corruptions: bool = False,
    latency: bool = False,
    isometry: bool = False,
) -> dict[str, Any]:
    """Evaluate on one split of the data; returns the record of the run with the new measurements.

    network       a module or `package.module:factory`; needed if the network is neither built in nor from torchvision
    data          another data set than the run's; images are normalised as in the run. Of data from Python without parts, the
                  split "test" is all of it
    task          the run's task, if it is one of your own: an object, or `package.module:Name`
    noise         add accuracy under uniform noise; for classification
    corruptions   add accuracy under common corruptions, by kind and severity; for classification
    latency       add medians and quartiles of a forward pass in milliseconds, at batch sizes 1, 16 and 256 on one CPU
                  thread, alternating with the dense network. With `unit: channel`, dead channels are removed first
                  (`compacted`)
    isometry      add the mean singular value of the input-output Jacobian over the first 128 items, also of the trained
                  network before pruning where its weights are known (`dense_isometry`); for float inputs

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
    if (one and given.shape != origin.shape) or (origin.logits is not None and given.classes > origin.classes):
        raise UserError(
            f"{given.name} has inputs of shape {given.shape} and {given.classes} classes; "
            f"the subnetwork takes {origin.shape} and {origin.classes}"
        )
    task.check_data(given)
    chosen = given.val if split == "val" else given.test()
    if chosen is None:
        raise UserError(f"{given.name} has no test split")
    if noise:
        check_noise(chosen)
    if corruptions:
        check_corruptions(chosen)
    inner = net.network if isinstance(net, Normalised) else net  # noise is added to normalised images
    mean, std = (None if t is None else torch.tensor(t) for t in (origin.mean, origin.std))
    more = {}
    if isometry:
        inputs = isometry_inputs(inner, task, in_order(chosen, mean, std))
        own = isinstance(network, nn.Module) or (isinstance(subnetwork, Subnetwork) and subnetwork.module is not None)
        more = isometry_record(subnetwork, inner, dense, own, inputs)
    if not one or origin.logits is None:
        inputs_sent(net, task, given.first(), outputs=task.outputs(given))  # raises UserError where the data does not fit
    scaled = (torch.zeros(1), torch.ones(1)) if isinstance(net, Normalised) else (mean, std)  # inputs in 0..1
    with torch.no_grad(), on_average(net, subnetwork.inputs(2)) as macs:
        found = task.measure(net, in_order(chosen, *scaled))
    record = {**subnetwork.summary(), "split": split, "items": len(chosen), **found, **more}
    if origin.dynamic:
        record["kept_macs"] = macs()
    if noise:
        record["noise"] = noise_curve(inner, None, chosen, mean, std)
    if corruptions:
        record["corruptions"] = corruption_table(inner, chosen, mean, std)
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
