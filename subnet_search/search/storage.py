"""The studies in a storage."""

import json
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import BaseStorage

from subnet_search.errors import UserError, unknown
from subnet_search.search.backends import in_one_line
from subnet_search.search.trust import check_imports, imports_of_spec

if TYPE_CHECKING:
    from subnet_search.search.spec import StudySpec

optuna.logging.set_verbosity(optuna.logging.ERROR)  # every event Optuna logs is in the storage, and shown from there


def load_study(name: str, storage: BaseStorage, **options: Any) -> optuna.Study:
    """A study that exists. Raises UserError with the nearest names when it does not."""
    try:
        return optuna.load_study(study_name=name, storage=storage, **options)
    except KeyError as error:
        names = optuna.get_all_study_names(storage)
        if not names:
            raise UserError(f"no study {name!r}: the storage holds no studies yet (subnet-search study run)") from error
        raise unknown("study", name, names) from error


def spec_of(study: optuna.Study) -> "StudySpec":
    """The spec a study was started with, under the name that the study has.

    Raises UserError when it was not made by us, or by a version that knew more.
    """
    from subnet_search.search.spec import StudySpec  # here, since whoever only looks on need not wait for torch

    text = study.user_attrs.get("spec")
    if text is None:
        raise UserError(f"the study {study.study_name!r} was not made by subnet-search, so it cannot be continued here")
    try:
        return StudySpec.from_json(json.dumps({**json.loads(text), "name": study.study_name}))
    except Exception as error:  # whatever a text that is no specification leads to
        versions = study.user_attrs.get("versions")
        made = versions.get("subnet-search", "another version") if isinstance(versions, dict) else "another version"
        raise UserError(
            f"the study {study.study_name!r} was made by subnet-search {made}, and cannot be read here: {in_one_line(error)}"
        ) from error


def trusted_spec_of(study: optuna.Study, allowed: Collection[str]) -> "StudySpec":
    """`spec_of`, for whoever runs it. Raises UserError, before anything is imported, for an import that is not allowed."""
    try:
        names = imports_of_spec(json.loads(study.user_attrs.get("spec", "{}")))
    except (ValueError, AttributeError, TypeError):
        return spec_of(study)  # which says what is wrong
    check_imports(f"the study {study.study_name!r}", names, allowed)
    return spec_of(study)
