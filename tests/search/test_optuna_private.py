"""What is read and written past Optuna's public functions is still as this package takes it to be."""

import optuna
import pytest
from optuna.storages import RDBStorage
from sqlalchemy import inspect

from subnet_search.search.engine.sampler_check import WARM_STARTS
from subnet_search.search.storage.optuna_private import METRIC_NAMES, CachedStorage, LazyRandomState, models

TABLES = {
    models.StudyModel: ("study_id", "study_name"),
    models.StudyDirectionModel: ("study_direction_id", "direction", "study_id", "objective"),
    models.StudyUserAttributeModel: ("study_user_attribute_id", "study_id", "key", "value_json"),
    models.StudySystemAttributeModel: ("study_system_attribute_id", "study_id", "key", "value_json"),
    models.TrialModel: ("trial_id", "number", "study_id", "state", "datetime_start", "datetime_complete"),
    models.TrialUserAttributeModel: ("trial_user_attribute_id", "trial_id", "key", "value_json"),
    models.TrialSystemAttributeModel: ("trial_system_attribute_id", "trial_id", "key", "value_json"),
    models.TrialParamModel: ("param_id", "trial_id", "param_name", "param_value", "distribution_json"),
    models.TrialValueModel: ("trial_value_id", "trial_id", "objective", "value", "value_type"),
    models.TrialIntermediateValueModel: (
        "trial_intermediate_value_id",
        "trial_id",
        "step",
        "intermediate_value",
        "intermediate_value_type",
    ),
}


@pytest.mark.parametrize("model", TABLES, ids=lambda model: model.__tablename__)
def test_the_columns_of_a_table(model):
    assert tuple(column.name for column in model.__table__.columns) == TABLES[model]


def test_a_new_database_has_these_tables_and_no_others_but_versions():
    storage = RDBStorage("sqlite://")
    extra = {"version_info", "alembic_version", "trial_heartbeats"}
    assert set(inspect(storage.engine).get_table_names()) - extra == {model.__tablename__ for model in TABLES}


def test_the_attributes_of_studies_and_storages():
    study = optuna.create_study(storage="sqlite://")
    assert isinstance(study._storage, CachedStorage)
    assert isinstance(study._storage._backend, RDBStorage)
    assert isinstance(study._study_id, int)
    assert study.ask()._trial_id >= 0
    study.set_metric_names(["accuracy"])
    assert study._storage.get_study_system_attrs(study._study_id) == {METRIC_NAMES: ["accuracy"]}


def test_a_callback_can_stop_a_study_outside_of_optimize():
    study = optuna.create_study(storage="sqlite://")
    study._thread_local.in_optimize_loop = True
    study.stop()
    assert study._stop_flag is True


def test_where_samplers_keep_random_numbers_and_the_starts_of_fits():
    assert isinstance(optuna.samplers.TPESampler()._rng, LazyRandomState)
    assert vars(optuna.samplers.GPSampler()).keys() >= set(WARM_STARTS)


def test_the_version():
    assert optuna.__version__.split(".")[0] == "5"
