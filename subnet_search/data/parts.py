"""The files of data in one file, or in a folder with a file for each part."""

from pathlib import Path

from subnet_search.core.errors import UserError


def files_of(path: Path, ending: str) -> tuple[Path, Path | None, Path | None]:
    """The files of training, validation and test: one file, or `train.ENDING`, `val.ENDING` and `test.ENDING` in a folder.

    Raises UserError when the file, or that of the training part, does not exist.
    """
    if not path.is_dir():
        if not path.is_file():
            raise UserError(f"no such data file: {path}")
        return path, None, None
    train, val, test = (path / f"{part}.{ending}" for part in ("train", "val", "test"))
    if not train.is_file():
        raise UserError(f"no such data file: {train}")
    return train, val if val.is_file() else None, test if test.is_file() else None
