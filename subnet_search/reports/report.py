"""Write a report about runs and studies."""

from pathlib import Path

import optuna

from subnet_search.core.errors import UserError
from subnet_search.reports.html_page import Column, write
from subnet_search.reports.run_report import run_column
from subnet_search.reports.study_report import study_column
from subnet_search.search.queries.queries import load_study
from subnet_search.search.storage.read import Snapshot
from subnet_search.search.storage.study_folder import file_name


def report(
    what: str | Path | optuna.Study,
    other: str | Path | optuna.Study | None = None,
    *,
    out: str | Path | None = None,
    storage: str | None = None,
    evaluate: bool = False,
) -> Path:
    """Write one HTML page about a run or a study, or about two of them side by side, and return its path.

    what, other   the folder of a run, the file of a subnetwork, an Optuna study, or the name of a study in `storage`
    out           the page [default: report.html in the run's folder, or runs/reports/NAME.html]
    storage       an Optuna storage URL [default: sqlite:///runs/studies.db]
    evaluate      also measure calibration and accuracy under noise of runs, on validation data

    The page needs no network: Plotly is part of it. Needs the extra `plots`. Raises UserError for what is neither a run nor a
    study and for a run that is not finished, RunError when the page cannot be written.
    """
    chosen = [what] if other is None else [what, other]
    columns = [_column(one, storage, evaluate) for one in chosen]
    if out is None:
        runs = isinstance(what, str | Path) and Path(what).exists()
        folder = (Path(what) if Path(what).is_dir() else Path(what).parent) if runs else Path("runs/reports")  # type: ignore[arg-type]
        out = folder / ("report.html" if runs else f"{file_name(columns[0].title)}.html")
    if Path(out).suffix.lower() not in (".html", ".htm"):
        raise UserError(f"a report is an HTML page, so its name ends in .html: got {out}")
    write(columns, Path(out))
    return Path(out)


def _column(what: str | Path | optuna.Study, storage: str | None, evaluate: bool) -> Column:
    if isinstance(what, optuna.Study):
        return study_column(what if isinstance(what, Snapshot) else Snapshot(what))
    path = Path(what)
    if path.exists():
        return run_column(path, evaluate)
    if "/" in str(what) or path.suffix:
        raise UserError(f"no such run: {what}")
    return study_column(Snapshot(load_study(str(what), storage)))
