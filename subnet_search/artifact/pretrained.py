"""A folder to publish a subnetwork in: config.json, model.safetensors, and README.md, a model card."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from subnet_search.artifact.subnetwork import Subnetwork, Weights
from subnet_search.core.errors import RunError, UserError, reason
from subnet_search.core.task_metrics import in_words, leading_in
from subnet_search.core.tensor_files import write_atomically

CONFIG, MODEL, CARD = "config.json", "model.safetensors", "README.md"


def save_pretrained(subnet: Subnetwork, folder: str | os.PathLike[str], weights: Weights = "values") -> None:
    """Write the three files; others in the folder stay. weights: as for `Subnetwork.save`.

    Raises UserError when `folder` is a file, RunError when it cannot be written.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: give a folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        subnet.save(folder / MODEL, weights)
        config = {"library_name": "subnet-search", **subnet.origin.model_dump(mode="json"), "summary": subnet.summary()}
        write_atomically(folder / CONFIG, (json.dumps(config, indent=2, default=str) + "\n").encode())
        write_atomically(folder / CARD, card(subnet).encode())
    except OSError as error:
        raise RunError(f"cannot write {folder}: {reason(error)}") from error


def from_pretrained(folder: str | os.PathLike[str], network: nn.Module | str | None = None) -> Subnetwork:
    """Read such a folder. network: the dense network, a module or `package.module:factory`, for one that has no name.

    A factory is imported and called only if it is passed. Raises UserError when the folder has no subnetwork, and when the
    network does not fit.
    """
    path = Path(folder) / MODEL
    if not path.is_file():
        raise UserError(f"{folder} has no {MODEL}: give a folder that Subnetwork.save_pretrained has written")
    subnet = Subnetwork.load(path)
    if network is None:
        return subnet
    module = network if isinstance(network, nn.Module) else subnet.origin.build(name=network)
    subnet.on(module)
    return replace(subnet, module=module)


def card(subnet: Subnetwork) -> str:
    """The model card in Markdown: what the subnetwork is, how it was found, and how to load it."""
    origin, record = subnet.origin, subnet.summary()
    leading = leading_in(record)
    name = origin.network.name if origin.network else None
    of = name or "a network passed from Python"
    rows: dict[str, Any] = {
        "method": f"`{origin.extractor['name']}`, unit `{origin.unit}`",
        "network": of,
        "data": record["data"] or "passed from Python",
        "task": (origin.task or {"name": "classification"})["name"],
        "density": f"{subnet.density:.4f} ({record['kept']:,} of {record['weights']:,} prunable weights)",
        in_words(leading, "validation"): record[f"val_{leading}"],
        in_words(leading, "test"): record[f"test_{leading}"],
        "seed": origin.seed,
        "classes": ", ".join(origin.class_names) if origin.class_names else None,
        "inputs": f"`{json.dumps(origin.spec)}`",
        "normalisation": f"`{json.dumps(origin.normalisation)}`" if origin.normalisation else "none",
        "sha256": f"`{subnet.sha256}`",
        "versions": ", ".join(f"{key} {value}" for key, value in origin.versions.items()),
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in rows.items() if value is not None)
    given = "" if name else ", network=net"
    return f"""---
library_name: subnet-search
tags: [pruning, sparsity, subnetwork]
---

# A subnetwork of {of}

Found with subnet-search. Pruned weights are zero and not stored.

| | |
|---|---|
{table}

```python
import subnet_search as ss

subnet = ss.Subnetwork.from_pretrained("."{given})
masked = subnet.network()  # a torch.nn.Module
```
"""
