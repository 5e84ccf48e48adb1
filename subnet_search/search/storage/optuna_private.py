"""Optuna's private names that this package relies on, all in one place; nothing else imports one but `artifact_protocol`.

They pay: 5,000 trials are read in 0.4 s where Optuna's public functions take 6 s. `tests/search/test_optuna_private.py`
checks the tables and the attributes, and the requirement is optuna>=5,<6.
"""

from optuna.storages._cached_storage import _CachedStorage as CachedStorage
from optuna.storages._rdb import models as models
from optuna.storages._rdb.storage import _create_scoped_session as create_scoped_session
from optuna.study._frozen import FrozenStudy as FrozenStudy
from optuna.study.study import _SYSTEM_ATTR_METRIC_NAMES as METRIC_NAMES

__all__ = ["METRIC_NAMES", "CachedStorage", "FrozenStudy", "create_scoped_session", "models"]
