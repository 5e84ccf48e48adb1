"""A second network to compare with: a file, the dense network with the weights that the run started from, or a module."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from subnet_search.artifact import Subnetwork
from subnet_search.artifact.subnetwork import Origin, has_header_key, state_in
from subnet_search.core.errors import UserError, shown
from subnet_search.data import Data, Items, Split, in_order
from subnet_search.deploy.exported_network import Deployed, read_artifact
from subnet_search.deploy.normalised import Normalised
from subnet_search.deploy.rebuild import dense_of
from subnet_search.evaluation import items as item_metrics
from subnet_search.evaluation.corruption_files import CorruptedFiles
from subnet_search.evaluation.robustness import check_corruptions
from subnet_search.nets import file_sha256, opened, own_copy, put_state
from subnet_search.tasks import Task

DENSE = "dense"
Against = Subnetwork | Deployed | nn.Module | str | Path


@dataclass(frozen=True)
class Ready:
    """A network in evaluation mode, with the normalisation that its images need."""

    net: nn.Module
    origin: Origin
    name: str

    @property
    def mean(self) -> Tensor | None:
        return None if self.origin.mean is None else torch.tensor(self.origin.mean)

    @property
    def std(self) -> Tensor | None:
        return None if self.origin.std is None else torch.tensor(self.origin.std)

    @property
    def inner(self) -> nn.Module:
        """The network that takes normalised images."""
        return self.net.network if isinstance(self.net, Normalised) else self.net

    def batches(self, split: Split | Items) -> Any:
        """The batches of a split as the network takes them."""
        own = isinstance(self.net, Normalised)  # takes images in 0..1
        return in_order(split, *((torch.zeros(1), torch.ones(1)) if own else (self.mean, self.std)))

    def measure(self, task: Task, split: Split | Items) -> tuple[dict[str, Any], item_metrics.Items | None]:
        with torch.no_grad():
            return task.measure_items(self.net, self.batches(split))

    def check_data(self, task: Task, data: Data) -> None:
        """Raise UserError when the network does not take this data."""
        origin = self.origin
        one = origin.input_spec is None and not task.any_length
        if (one and data.shape != origin.shape) or (origin.logits is not None and data.classes > origin.classes):
            raise UserError(
                f"{data.name} has inputs of shape {data.shape} and {data.classes} classes; "
                f"{self.name} takes {origin.shape} and {origin.classes}"
            )


def ready(artifact: Subnetwork | Deployed, network: nn.Module | str | None = None, name: str = "the subnetwork") -> Ready:
    """The network of a file. network: as for `evaluate`."""
    return Ready(artifact.on(dense_of(artifact, network)).eval(), artifact.origin, name)


def other_network(against: Against, subnetwork: Subnetwork | Deployed, network: nn.Module | str | None) -> Ready:
    """The network to compare `subnetwork` with.

    against   a subnetwork, an exported network, or the file of one; a file of torch or safetensors with the state dict of the
              dense network; a module that takes the same inputs; or "dense", the network with the weights that it had before
              it was pruned
    network   as for `evaluate`

    Raises UserError when it cannot be read, and when the weights before pruning are not known.
    """
    if isinstance(against, nn.Module):
        return Ready(own_copy(against).eval(), subnetwork.origin, type(against).__name__)
    if isinstance(against, Subnetwork | Deployed):
        return ready(against, network, "the other subnetwork")
    if against == DENSE:
        return Ready(trained_before(subnetwork, network).eval(), subnetwork.origin, DENSE)
    if not isinstance(against, str | Path):
        raise UserError(f"against is a file, a subnetwork, a module or {DENSE!r}, got {shown(against)}")
    path = Path(against).expanduser()
    if path.is_file() and not (has_header_key(path, "origin") or has_header_key(path, "deployed")):
        return Ready(_with_state(subnetwork, network, path).eval(), subnetwork.origin, str(against))
    return ready(read_artifact(path), network, str(against))


def trained_before(subnetwork: Subnetwork | Deployed, network: nn.Module | str | None = None) -> nn.Module:
    """The dense network with the trained weights that the run started from: those of `network.state`, or of a module.

    Raises UserError when they are not known, and when their file has changed, or is outside the current folder: for security
    a file decides on no reads elsewhere.
    """
    spec, init = subnetwork.origin.network, subnetwork.origin.init
    if spec is not None and spec.new_head:
        raise UserError("the network had another output layer before this run: there is no dense network to compare with")
    if spec is not None and spec.state:
        path = Path(spec.state).expanduser()
        if not path.resolve().is_relative_to(Path.cwd()):
            raise UserError(f"the weights that this run started from are outside the current folder: name them: {path}")
        file_sha256(spec.state, "network.state", spec.state_sha256)
        return _with_state(subnetwork, network, path)
    own = subnetwork.module if isinstance(subnetwork, Subnetwork) else None
    module = network if isinstance(network, nn.Module) else own
    if module is not None and init == "keep":
        return own_copy(module)
    raise UserError(
        "this run did not start from trained weights (network.state), so there is no dense network to compare with: name "
        "the file of one"
    )


def _with_state(subnetwork: Subnetwork | Deployed, network: nn.Module | str | None, path: Path) -> nn.Module:
    """A copy of the dense network of a run with the state dict of a file."""
    spec = subnetwork.origin.network
    net = own_copy(opened(dense_of(subnetwork, network)))
    partial = spec is not None and spec.partial and spec.state is not None and Path(spec.state).expanduser() == path
    put_state(net, state_in(path, "against"), spec.name if spec else type(net).__name__, str(path), partial)
    return net


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
    return other.inner


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
