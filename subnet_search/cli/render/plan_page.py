"""Print what `--dry-run` found."""

from collections.abc import Mapping
from typing import Any

from subnet_search.cli.render import format
from subnet_search.core.documents import dump

WIDTH = 80
MEMORY = {
    "parameters": "parameters and buffers",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "weight_statistics": "mean and variance of weights",
    "masks": "masks and what the method learns",
    "activations": "activations of a batch",
    "data": "data",
}


def plan(record: Mapping[str, Any]) -> None:
    """The complete configuration, layers, density, steps and memory of a run."""
    format.say(f"# complete configuration\n{dump(record['config']).decode()}")
    layers = [{**row, "size": format.cell("", row["size"])} for row in record["layers"]]
    headings = {"name": "layer", "type": "type", "shape": "weight", "size": "numbers", "pruned": ""}
    format.table(layers, headings, width=WIDTH)
    memory, steps = record["memory"], record["steps"]
    values = {
        "biases": f"{record['biases']:,} numbers in biases and similar parameters, never pruned"
        if record["biases"]
        else "none",
        "density": record["density"],
        "steps": f"{steps['epochs']} epochs of {steps['per_epoch']:,} batches: {steps['total']:,} steps",
        "data": record["data"],
    }
    format.console.print()
    format.pairs(values, width=WIDTH)
    format.console.print()
    rows = {label: format.size(memory[key]) for key, label in MEMORY.items() if key in memory}
    if memory["activations"]:
        rows["activations of a batch"] += f" (measured in a forward pass of {memory['batch']} items)"
    format.pairs({**rows, "together": format.size(memory["total"])}, title="Memory at the start of training", width=WIDTH)
    format.console.print("\nNothing was trained or written (--dry-run)")


def study(record: Mapping[str, Any]) -> None:
    """A study's specification, and the plan of a trial."""
    format.say(f"# complete specification\n{dump(record['study']).decode()}")
    format.say(f"# searched\n{dump(record['space']).decode()}")
    each = "one worker runs" if record["workers"] == 1 else f"each of {record['workers']} workers runs"
    format.say(f"# {each} one trial at a time; steps and memory are of {record['run']['method']}")
    plan(record["run"])


def comparison(record: Mapping[str, Any]) -> None:
    """The runs of a comparison, and the plan of the first one."""
    rows = record["rows"]
    format.table(rows, {"method": "method", "density": "density", "runs": "runs"}, width=WIDTH)
    format.say(f"\n{record['runs']:,} runs, those that are finished included\n{record['recipe']}\n\n# the first run:")
    plan(record["run"])
