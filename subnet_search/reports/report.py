"""Write a report about runs and studies. About a study, without importing torch, which takes longer than the report."""

from collections.abc import Iterator
from pathlib import Path

from subnet_search.core.errors import UserError
from subnet_search.core.numbers_as_text import cell
from subnet_search.reports.html_page import Column, Section, write
from subnet_search.reports.study_report import study_column
from subnet_search.search.queries.queries import load_study
from subnet_search.search.queries.study_diff import diff_studies, differences
from subnet_search.search.queries.study_figures import words
from subnet_search.search.storage.read import Snapshot, Study
from subnet_search.search.storage.study_folder import file_name

RUN = ("config.yaml", "subnetwork.safetensors")  # files of which the folder of a run has one or both


def report(
    what: str | Path | Study,
    other: str | Path | Study | None = None,
    *,
    out: str | Path | None = None,
    storage: str | None = None,
    evaluate: bool = False,
) -> Path:
    """Write one HTML page about a run or a study, or about two of them side by side, and return its path.

    what, other   the folder of a run, the file of a subnetwork, an Optuna study, or the name of a study in `storage`
    out           the page [default: report.html in the run's folder, FILE.report.html beside a file, or runs/reports/NAME.html]
    storage       an Optuna storage URL [default: sqlite:///runs/studies.db]
    evaluate      measure calibration, and of a classifier the accuracy under noise, of runs, on validation data; otherwise
                  the page shows what `subnet-search evaluate --save` has measured

    The page needs no network: Plotly is part of it. Needs the extra `plots`. Raises UserError for what is neither a run nor a
    study and for a run that is not finished, RunError when the page cannot be written.
    """
    if out is not None and Path(out).suffix.lower() not in (".html", ".htm"):
        raise UserError(f"a report is an HTML page, so its name ends in .html: got {out}")
    columns = [_column(one, storage, evaluate) for one in ([what] if other is None else [what, other])]
    path = Path(out) if out is not None else _place(what, columns)
    write(columns, path, list(_shared(*columns)) if len(columns) == 2 else ())
    return path


def _place(what: str | Path | Study, columns: list[Column]) -> Path:
    """The folder of the run, if the page is about one run; otherwise runs/reports."""
    if len(columns) == 1 and columns[0].study is None and isinstance(what, str | Path):
        path = Path(what)
        return path / "report.html" if path.is_dir() else path.with_name(f"{path.stem}.report.html")
    return Path("runs/reports") / f"{'-and-'.join(file_name(column.title) for column in columns)}.html"


def _column(what: str | Path | Study, storage: str | None, evaluate: bool) -> Column:
    if isinstance(what, Study):
        return study_column(what if isinstance(what, Snapshot) else Snapshot(what))
    path, name = Path(what), str(what)
    if path.is_file() or any((path / part).is_file() for part in RUN):
        from subnet_search.reports.run_report import run_column

        return run_column(path, evaluate)
    if "/" in name or path.suffix == ".safetensors":
        raise UserError(f"{name} is no run folder or file" if path.exists() else f"no such run: {name}")
    try:
        return study_column(Snapshot(load_study(name, storage)))
    except UserError as error:
        if path.exists():
            raise UserError(f"{name} is no run folder or file, and no study: {error}") from error
        raise


def _shared(one: Column, other: Column) -> Iterator[Section]:
    """What two runs, or two studies, have in common and not."""
    if (one.study is None) != (other.study is None):
        return
    rows = differences(one.settings, other.settings)
    named = [{"setting": row["key"], f"1: {one.title}": row["a"], f"2: {other.title}": row["b"]} for row in rows]
    yield Section("Different settings", "" if named else "None.", rows=named)
    if one.study is not None:
        try:
            found = diff_studies(one.study, other.study)
        except UserError as error:  # of different objectives
            yield Section("After equal work", f"Not compared: {error}.")
            return
        if rows := found.get("at_equal_trials", ()):
            text = f"The best {words(found['objective'][0])} after equal numbers of finished trials."
            name, titles = found["objective"][0], {"a": f"1: {one.title}", "b": f"2: {other.title}"}
            named = [{"trials": row["trials"]} | {titles[key]: cell(name, row[key]) for key in titles} for row in rows]
            yield Section("After equal work", text, rows=named)
