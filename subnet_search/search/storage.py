"""The studies in a storage."""

import json
from typing import TYPE_CHECKING, Any

import optuna
from optuna.storages import BaseStorage

from subnet_search.errors import UserError, unknown

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
    """The spec a study was started with. Raises UserError when it was not made by us, or by a version that knew more."""
    from subnet_search.search.spec import StudySpec  # here, since whoever only looks on need not wait for torch

    text = study.user_attrs.get("spec")
    if text is None:
        raise UserError(f"the study {study.study_name!r} was not made by subnet-search, so it cannot be continued here")
    try:
        return StudySpec.from_json(text)
    except (UserError, json.JSONDecodeError) as error:
        made = study.user_attrs.get("versions", {}).get("subnet-search", "another version")
        raise UserError(
            f"the study {study.study_name!r} was made by subnet-search {made}, and cannot be read here: {error}"
        ) from error
