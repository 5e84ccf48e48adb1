"""Prune potential: how much of a network can be pruned before its error rises, on clean, noisy and corrupted images.

Liebenwein, Baykal, Carter, Gifford & Rus 2021, "Lost in Pruning", arXiv:2103.03014: the largest prune ratio with an error of
at most the dense network's plus delta, 0.5 percentage points, on one distribution of inputs. As in the authors' code it is
the largest ratio among the given networks, without interpolation between them, and 0 if none is good enough; a network of a
larger ratio counts also where one of a smaller ratio is not good enough. Their ratio is of all parameters; ours of those
that can be pruned.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from torch import nn

from subnet_search.core.errors import UserError
from subnet_search.data import Items, Split
from subnet_search.deploy.exported_network import Artifact, read_artifact
from subnet_search.deploy.rebuild import check_given, split_of, task_of_run
from subnet_search.evaluation.corruption_files import CorruptedFiles
from subnet_search.evaluation.robustness import check_noise, corruption_table, noise_curve
from subnet_search.extraction.against import DENSE, Against, Ready, check_alike, corrupted_files, other_network, ready
from subnet_search.tasks import Classification

DELTA, SEVERITY = 0.005, 3
ROUNDING = 1e-9  # of the difference between two fractions of items


def prune_potential(
    subnetworks: Sequence[Artifact | str | Path],
    against: Against = DENSE,
    split: Literal["val", "test"] = "test",
    *,
    delta: float = DELTA,
    noise: bool = False,
    corruptions: bool | str | Path = False,
    severity: int = SEVERITY,
    network: nn.Module | str | None = None,
    data: Any = None,
    task: Any = None,
) -> dict[str, Any]:
    """The prune potential of one dense network, from subnetworks of it at several densities.

    subnetworks   subnetworks, exported networks, their files, or folders of these
    against       the dense network, as for `evaluate`
    delta         how much the error may rise above the dense network's, as a fraction of the items
    noise         also for images with uniform noise, at each level
    corruptions   also for corrupted images: True or a folder, as for `evaluate`
    severity      of the corruptions, 1 to 5

    Other arguments as for `evaluate`. Returns `networks`, rows of `file`, `density` and `prune_ratio`, and `rows` with a row
    for each distribution: `inputs`, `dense_error`, `errors` (in the order of `networks`) and `prune_potential`.
    Raises UserError when the task is not classification, or the networks and the data do not match.
    """
    if split not in ("val", "test"):
        raise UserError(f"split must be val or test, got {split!r}")
    if not delta >= 0:
        raise UserError(f"delta must not be below 0, got {delta:g}")
    if severity not in range(1, 6):
        raise UserError(f"a severity must be an integer from 1 to 5, got {severity!r}")
    found = sorted(_opened(subnetworks), key=lambda pair: -float(pair[1].summary()["density"]))
    first = found[0][1]
    task = task_of_run(first, task)
    if not isinstance(task, Classification):
        raise UserError(f"the prune potential is of classifiers: it needs the task classification, got {task.name}")
    check_given(first, network, data, task)
    nets = [other_network(against, first, network), *(ready(one, network, name) for name, one in found)]
    for net in nets:
        check_alike(task, nets[1], net)
    chosen = split_of(first, nets[1].net, data, task, split)
    if noise:
        check_noise(chosen)
    files = corrupted_files(corruptions, first.origin, chosen)
    dense, *pruned = (_errors(net, task, chosen, noise, corruptions is True, files, severity) for net in nets)
    ratios = [1 - one.summary()["density"] for _, one in found]
    rows = [
        {
            "inputs": name,
            "dense_error": error,
            "errors": (errors := [one[name] for one in pruned]),
            "prune_potential": potential(error, errors, ratios, delta),
        }
        for name, error in dense.items()
    ]
    return {
        "against": nets[0].name,
        "data": data if isinstance(data, str) else (first.origin.data or {"name": "given data"})["name"],
        "split": split,
        "items": len(chosen),
        "delta": delta,
        "networks": [
            {"file": name, "density": 1 - ratio, "prune_ratio": ratio} for (name, _), ratio in zip(found, ratios, strict=True)
        ],
        "rows": rows,
    }


def potential(dense_error: float, errors: Sequence[float], ratios: Sequence[float], delta: float = DELTA) -> float:
    """The largest of the prune ratios whose error is at most `dense_error` + `delta`; 0 if there is none."""
    good = (ratio for error, ratio in zip(errors, ratios, strict=True) if error <= dense_error + delta + ROUNDING)
    return max(good, default=0.0)


def _opened(subnetworks: Sequence[Artifact | str | Path]) -> list[tuple[str, Artifact]]:
    """The subnetworks with their names, those of folders in order. Raises UserError when there are none."""
    found: list[tuple[str, Artifact]] = []
    for one in subnetworks:
        if isinstance(one, Artifact):
            found.append((f"subnetwork {len(found) + 1}", one))
            continue
        path = Path(one).expanduser()
        files = sorted(path.glob("subnetwork*.safetensors")) if path.is_dir() else [path]
        if not files:
            raise UserError(f"{path} has no subnetwork*.safetensors: name the files")
        found += [(str(file), read_artifact(file)) for file in files]
    if not found:
        raise UserError("give the files of subnetworks of one network, at several densities")
    return found


def _errors(
    net: Ready,
    task: Classification,
    split: Split | Items,
    noise: bool,
    corrupted: bool,
    files: CorruptedFiles | None,
    severity: int,
) -> dict[str, float]:
    """The error of a network on each distribution of inputs, by its name."""
    metrics, _ = net.measure(task, split)
    found = {"clean": metrics["accuracy"]}
    if noise:
        curve = noise_curve(net.inner, None, split, net.mean, net.std)
        found |= {f"noise {row['level']:g}": row["accuracy"] for row in curve if row["level"] > 0}
    if corrupted or files:
        rows = (
            files.table(net.inner, net.mean, net.std, [severity])
            if files
            else corruption_table(net.inner, split, net.mean, net.std, [severity])
        )
        found |= {f"{row['corruption']} {severity}": row["accuracy"] for row in rows}
    return {name: 1 - accuracy for name, accuracy in found.items()}
