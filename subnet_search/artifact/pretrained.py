"""Files to publish beside a subnetwork: config.json and README.md, a model card."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from subnet_search.core.numbers_as_text import by_reason, cell
from subnet_search.core.task_metrics import in_words, leading_in
from subnet_search.core.tensor_files import write_atomically

CONFIG, MODEL, CARD = "config.json", "model.safetensors", "README.md"


def write_card(folder: Path, origin: Mapping[str, Any], record: Mapping[str, Any]) -> None:
    """Write config.json and README.md. origin: settings of the run; record: summary of the subnetwork, as plain values."""
    config = {"library_name": "subnet-search", **origin, "summary": record}
    write_atomically(folder / CONFIG, (json.dumps(config, indent=2, default=str) + "\n").encode())
    write_atomically(folder / CARD, card(origin, record).encode())


def card(origin: Mapping[str, Any], record: Mapping[str, Any]) -> str:
    """The model card in Markdown: what the subnetwork is, how it was found, and how to load it."""
    leading, name = leading_in(record), record["network"]
    names, normalisation = origin["class_names"], record["normalisation"]
    inputs = origin["input_spec"] or {key: origin[key] for key in ("shape", "dtype", "low", "high")}
    of = name or "a network passed from Python"
    rows: dict[str, Any] = {
        "method": f"`{record['extractor']}`, unit `{origin['unit']}`",
        "network": of,
        "data": record["data"] or "passed from Python",
        "task": origin["task"]["name"],
        "density": f"{record['density']:.4f} ({record['kept']:,} of {record['weights']:,} prunable weights)",
        "target": _code(origin["target"]),
        "dense layers": ", ".join(f"`{name}`" for name in origin["dense_layers"]) or None,
        **_not_pruned(record),
        in_words(leading, "validation"): cell(leading, record[f"val_{leading}"]),
        in_words(leading, "test"): cell(leading, record[f"test_{leading}"]),
        f"{in_words(leading, 'validation')} before pruning": _measured(record, f"unpruned_val_{leading}"),
        f"{in_words(leading, 'test')} before pruning": _measured(record, f"unpruned_test_{leading}"),
        "hyperparameters": _code({key: value for key, value in origin["extractor"].items() if key != "name"}),
        "recipe": _code({key: value for key, value in origin["recipe"].items() if value is not None}),
        "seed": origin["seed"],
        "classes": ", ".join(names) if names else None,
        "inputs": _code(inputs),
        "normalisation": _code(normalisation) or "none",
        "sha256": f"`{record['sha256']}`",
        "versions": ", ".join(f"{key} {value}" for key, value in origin["versions"].items()),
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


def _code(values: Any) -> str | None:
    return f"`{json.dumps(values)}`" if values else None


def _measured(record: Mapping[str, Any], key: str) -> str | None:
    name = key.removeprefix("unpruned_")
    return None if record.get(key) is None else cell(name, record[key])


def _not_pruned(record: Mapping[str, Any]) -> dict[str, str]:
    """What was left whole, with the reasons."""
    layers = [f"`{one['name']}`: {one['why']}" for one in record.get("left_whole", ())]
    channels = [f"`{', '.join(names)}`: {why}" for why, names in by_reason(record.get("channels_left_whole", ())).items()]
    return {key: "; ".join(rows) for key, rows in (("not pruned", layers), ("channels not pruned", channels)) if rows}
