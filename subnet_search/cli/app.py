"""The typer application with all commands."""

from collections.abc import Callable
from typing import Annotated

import typer

from subnet_search.cli.commands.analysis import masks, plasticity
from subnet_search.cli.commands.compare import compare, sanity
from subnet_search.cli.commands.config import config
from subnet_search.cli.commands.export import export
from subnet_search.cli.commands.init import init
from subnet_search.cli.commands.prune_potential import prune_potential
from subnet_search.cli.commands.report import report
from subnet_search.cli.commands.run import data, evaluate, extract, methods, predict, tasks
from subnet_search.cli.commands.study_admin import studies

app = typer.Typer(
    name="subnet-search",
    help="Find small, effective networks inside large ones.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.add_typer(studies, name="study")


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"subnet-search {version('subnet-search')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    """Find small, effective networks inside large ones."""


EXAMPLES: dict[Callable[..., None], str] = {
    init: "init my_project",
    extract: "extract configs/gumbel_digits.yaml -s extractor.density=0.3",
    evaluate: "evaluate runs/gumbel_digits/subnetwork.safetensors --split test --noise",
    prune_potential: "prune-potential runs/gumbel_digits --against dense.safetensors --noise",
    predict: "predict runs/gumbel_digits/subnetwork.safetensors photo.png photos/",
    export: "export runs/channels_digits/subnetwork.safetensors --to compact small.safetensors",
    methods: "methods gumbel",
    tasks: "tasks classification",
    data: "data npz:my_images.npz",
    config: "config recipe",
    compare: "compare configs/random_digits.yaml --extractors gumbel,random --densities 0.2,0.05",
    plasticity: "plasticity configs/random_digits.yaml --epochs 5 --plot",
    masks: "masks runs/extract/subnetwork.safetensors runs/extract-2/subnetwork.safetensors",
    report: "report quickstart",
    sanity: "sanity configs/random_digits.yaml -s extractor=snip --seeds 5",
}
for command, example in EXAMPLES.items():
    app.command(epilog=f"Example: subnet-search {example}")(command)
