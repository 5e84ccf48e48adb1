"""The command `init`."""

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from subnet_search.core.errors import RunError, UserError

PACKAGE = Path(__file__).parents[2]
COPIED = {"configs": (".yaml",), "studies": (".yaml",), "examples": (".py", ".ipynb")}  # folders, and which files of each
NEXT = ("subnet-search extract configs/gumbel_digits.yaml", "subnet-search study run studies/quickstart.yaml")


def shipped() -> dict[Path, Path]:
    """Files that `init` copies: source path by target path.

    They are in `subnet_search/shipped/` in a wheel, and next to the package in a checkout.
    """
    home = PACKAGE / "shipped" if (PACKAGE / "shipped").is_dir() else PACKAGE.parent
    files = [path for name, kinds in COPIED.items() for path in sorted((home / name).iterdir()) if path.suffix in kinds]
    return {path.relative_to(home): path for path in files}


def init(folder: Annotated[Path, typer.Argument(help="Target folder; created if it does not exist.")] = Path()) -> None:
    """Copy the package's examples into a folder.

    These are configurations, studies, extractors and notebooks. Existing files are not overwritten.
    """
    for path in (folder, *(folder / name for name in COPIED)):
        if os.path.lexists(path) and not path.is_dir():
            raise UserError(f"{path} is a file: choose a folder")
    written = 0
    for name, source in shipped().items():
        target = folder / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as file:
                file.write(source.read_bytes())
        except FileExistsError:
            typer.echo(f"{target} exists and was not overwritten")
        except OSError as error:
            raise RunError(f"cannot write {target}: {error.strerror or error}") from error
        else:
            written += 1
    typer.echo(f"{written} files copied into {', '.join(f'{folder / name}/' for name in COPIED)}\n\nNext:")
    there = [] if folder.resolve() == Path.cwd() else [f"cd {shlex.quote(str(folder))}"]
    for line in (*there, *NEXT):
        typer.echo(f"  {line}")
