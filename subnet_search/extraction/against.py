"""A second network to compare with: a file, the dense network with the weights that the run started from, or a module."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from subnet_search.artifact import Subnetwork
from subnet_search.artifact.subnetwork import Origin, has_header_key, state_in
from subnet_search.core.errors import UserError, shown
from subnet_search.data import Items, Split, in_order
from subnet_search.deploy.exported_network import Artifact, read_artifact
from subnet_search.deploy.normalised import Normalised
from subnet_search.deploy.rebuild import dense_of, network_of, statistics_outside
from subnet_search.evaluation import items as item_metrics
from subnet_search.evaluation.corruption_files import CorruptedFiles
from subnet_search.evaluation.robustness import check_corruptions
from subnet_search.nets import build, file_sha256, opened, own_copy, put_state
from subnet_search.tasks import Task

DENSE = "dense"
Against = Artifact | nn.Module | str | Path


@dataclass(frozen=True)
class Ready:
    """A network in evaluation mode, with the normalisation that its images need."""

    net: Any
    origin: Origin
    name: str
    outside: tuple[Tensor | None, Tensor | None]  # mean and std to normalise images by before they go into `net`

    @property
    def mean(self) -> Tensor | None:
        """Mean of each channel of images scaled to 0..1: (channels,). None: inputs are not normalised."""
        return None if self.origin.mean is None else torch.tensor(self.origin.mean)

    @property
    def std(self) -> Tensor | None:
        """Standard deviation, as `mean`."""
        return None if self.origin.std is None else torch.tensor(self.origin.std)

    @property
    def inner(self) -> Any:
        """The network that takes normalised images."""
        return self.net.network if isinstance(self.net, Normalised) else self.net

    def measure(self, task: Task, split: Split | Items) -> tuple[dict[str, Any], item_metrics.Items | None]:
        """The task's metrics on a split, and what the leading one is made of for each item; see `Task.measure_items`."""
        with torch.no_grad():
            return task.measure_items(self.net, in_order(split, *self.outside))


def ready(artifact: Artifact, network: nn.Module | str | None = None, name: str = "the subnetwork") -> Ready:
    """The network of a file. network: as for `evaluate`."""
    return Ready(network_of(artifact, network).eval(), artifact.origin, name, statistics_outside(artifact))


def check_alike(task: Task, this: Ready, other: Ready) -> None:
    """Raise UserError when two networks do not take the same data."""
    own, others = ((one.origin.shape, one.origin.classes) for one in (this, other))
    if own != others and not task.any_length:
        raise UserError(
            f"{this.name} takes inputs of shape {own[0]} and {own[1]} classes; {other.name} {others[0]} and {others[1]}"
        )


def other_network(against: Against, subnetwork: Artifact, network: nn.Module | str | None) -> Ready:
    """The network to compare `subnetwork` with.

    against   a subnetwork, an exported network, or the file of one; a file of torch or safetensors with the state dict of the
              dense network; a module that takes the same inputs; or "dense", the network with the weights that it had before
              it was pruned
    network   as for `evaluate`

    Raises UserError when it cannot be read, and when the weights before pruning are not known.
    """
    if isinstance(against, Artifact):
        return ready(against, network, "the other subnetwork")
    if isinstance(against, nn.Module):
        return _unpruned(subnetwork, own_copy(against), type(against).__name__)
    if against == DENSE:
        dense = dense_of(subnetwork, network)
        found = before_pruning(subnetwork, dense, passed_module(subnetwork, network), "name the file of the dense network")
        return _unpruned(subnetwork, found, DENSE)
    if not isinstance(against, str | Path):
        raise UserError(f"against is a file, a subnetwork, a module or {DENSE!r}, got {shown(against)}")
    path = Path(against).expanduser()
    if not path.exists():
        raise UserError(f"no such file to compare with: {path}")
    if path.suffix == ".onnx" or path.is_dir() or any(has_header_key(path, key) for key in ("origin", "deployed")):
        return ready(read_artifact(path), network, str(against))
    net, spec = own_copy(opened(dense_of(subnetwork, network))), subnetwork.origin.network
    put_state(net, state_in(path, "against"), spec.name if spec else type(net).__name__, str(path))
    return _unpruned(subnetwork, net, str(against))


def _unpruned(subnetwork: Artifact, net: nn.Module, name: str) -> Ready:
    """A dense network of a run, without gates."""
    origin = subnetwork.origin
    plain = Ready(opened(net).eval(), origin, name, (None, None))
    return replace(plain, outside=(plain.mean, plain.std))


def passed_module(subnetwork: Artifact, network: nn.Module | str | None) -> bool:
    """Whether the dense network of a file was passed as a module, so that its weights are the caller's."""
    return isinstance(network, nn.Module) or (isinstance(subnetwork, Subnetwork) and subnetwork.module is not None)


def before_pruning(subnetwork: Artifact, dense: nn.Module, own: bool, instead: str) -> nn.Module:
    """The network with its trained weights before pruning. Raises UserError when they are not known.

    dense: the dense network. own: as `passed_module`. instead: what to do where they are not known, for the message. A file
    cannot cause reads outside of the current folder.
    """
    origin = subnetwork.origin
    if own and origin.init == "keep":
        return dense
    spec = origin.network
    if own or spec is None or not spec.state or spec.partial or spec.new_head:
        raise UserError(f"no trained weights from before pruning are known; {instead}")
    path = Path(spec.state).expanduser()
    if not path.resolve().is_relative_to(Path.cwd()):
        raise UserError(f"the run started from weights outside the current folder, {path}; {instead}")
    file_sha256(spec.state, "network.state", spec.state_sha256)
    net = build(spec.model_copy(update={"options": origin.options}), origin.shape, origin.classes or None, 0, state_in(path))
    return origin.with_gates(net)


def corrupted_files(corruptions: bool | str | Path, origin: Origin, split: Split | Items) -> CorruptedFiles | None:
    """The folder of corrupted images, if one is given. Raises UserError when it, or the images of the split, are unfit."""
    if isinstance(corruptions, bool):
        if corruptions:
            check_corruptions(split)
        return None
    return CorruptedFiles.of(corruptions, origin.shape, origin.classes)


def reference(this: Ready, other: Ready) -> Callable[[Tensor], Tensor]:
    """The other network, for inputs that are normalised as those of this one. Raises UserError when its own differ."""
    if (this.origin.mean, this.origin.std) != (other.origin.mean, other.origin.std):
        raise UserError(f"noise is added to normalised images, and {other.name} normalises them in another way: leave it out")
    inner: Callable[[Tensor], Tensor] = other.inner
    return inner


def compared(
    task: Task,
    this: tuple[dict[str, Any], item_metrics.Items | None],
    other: tuple[dict[str, Any], item_metrics.Items | None],
    name: str,
) -> dict[str, Any]:
    """How two networks differ on the same items. this, other: what `Task.measure_items` returned.

    Keys: `name`; the leading metric of the other network; `difference`, this minus the other, and its 95 % interval; `test`,
    of the hypothesis that there is no difference: McNemar's exact test of classifiers, and a paired bootstrap of other tasks.
    Of classifiers also `agreement` (fraction of equal predictions), `distance` (mean L2 norm of the difference of softmax
    outputs) and `classes`, with the largest loss of accuracy first.
    """
    (found, items), (others, other_items), leading = this, other, task.leading
    record = {"name": name, leading: others[leading], "difference": found[leading] - others[leading]}
    if items is None or other_items is None:
        return record
    bounds = item_metrics.interval(items, other_items)
    p_value = bounds.pop("p_value")
    record |= {"interval": bounds, "test": {"test": "paired bootstrap", "p_value": p_value}}
    if items.logits is None or other_items.logits is None or items.labels is None:
        return record
    logits, other_logits, labels = items.logits, other_items.logits, items.labels
    right, other_right = (one.argmax(1) == labels for one in (logits, other_logits))
    apart = None
    if logits.shape == other_logits.shape:
        apart = float((logits.double().softmax(1) - other_logits.double().softmax(1)).norm(dim=1).mean())
    return record | {
        "test": item_metrics.mcnemar(right, other_right),
        "agreement": float((logits.argmax(1) == other_logits.argmax(1)).double().mean()),
        "distance": apart,
        "classes": _by_class(found["class_accuracy"], others["class_accuracy"], labels),
    }


def _by_class(accuracy: list[float | None], others: list[float | None], labels: Tensor) -> list[dict[str, Any]]:
    """The accuracies of each class that has items, the largest loss first."""
    counts = labels.bincount(minlength=len(accuracy)).tolist()
    rows = [
        {"class": index, "items": counts[index], "accuracy": here, "other_accuracy": there, "difference": here - there}
        for index, (here, there) in enumerate(zip(accuracy, others, strict=False))
        if here is not None and there is not None
    ]
    return sorted(rows, key=lambda row: row["difference"])
