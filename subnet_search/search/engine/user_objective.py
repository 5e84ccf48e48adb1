"""For an objective of one's own in `study.optimize`: an extractor with suggested hyperparameters, and reports of epochs.

def objective(trial):
    extractor = ss.suggest(trial, "rigl", density=0.1)
    return ss.extract(net, data, extractor, on_epoch=ss.report_to(trial)).summary()["val_accuracy"]
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FixedTrial, FrozenTrial

from subnet_search.core.errors import UserError, shown, unknown
from subnet_search.extraction.config import RunConfig
from subnet_search.extractors import Extractor, create
from subnet_search.search.spec.search_space import Space
from subnet_search.search.spec.space_parser import METHOD
from subnet_search.tasks.registry import TASKS
from subnet_search.training import Epoch

AnyTrial = optuna.Trial | FixedTrial | FrozenTrial


def suggest(trial: AnyTrial, extractor: str | Sequence[str] | Mapping[str, Any], **hyperparameters: Any) -> Extractor:
    """An extractor whose hyperparameters an Optuna trial suggests, each from the search domain that its method declares.

    extractor         a method's name; or several, as a list, or as a mapping from names to what is searched:
                      {"rigl": ["every", "drop_fraction"], "snip": "all"}. The trial then also chooses the method
    hyperparameters   values that are not searched, the same for all methods, or other domains: density=ss.Real(0.05, 0.5)

    Parameters have the names that they have in a study: extractor.density, and with several methods extractor.density @rigl.
    Raises UserError for an unknown method, or a hyperparameter or value that a method does not accept.
    """
    methods = [extractor] if isinstance(extractor, str) else [*extractor] if isinstance(extractor, Sequence | Mapping) else []
    if not methods:
        raise UserError(f"suggest takes the name of a method, or of several; got {shown(extractor)}")
    choice = {"choice": dict(extractor) if isinstance(extractor, Mapping) else methods}
    given = {METHOD: "all" if isinstance(extractor, str) else choice}
    given |= {f"{METHOD}.{name}": value for name, value in hyperparameters.items()}
    space = Space(given, RunConfig(extractor=create(methods[0])), empty=True)
    return space.config(space.suggest(trial)).extractor


def report_to(trial: AnyTrial, metric: str | None = None) -> Callable[[Epoch], None]:
    """A function for `extract(on_epoch=...)` that reports each epoch to an Optuna trial and stops the run if it is pruned.

    metric   on the validation split: val_accuracy, val_nll, ...; default: the leading metric of the task

    Epochs before the method has reached its density are not reported: their values cannot be compared with those of other
    trials. Raises UserError for a trial with several objectives, which Optuna cannot prune. The function raises
    optuna.TrialPruned, and UserError for a metric that the task does not have, or one of a built-in task whose direction is
    not the study's.
    """
    if isinstance(trial, optuna.Trial) and len(trial.study.directions) > 1:
        raise UserError("Optuna prunes trials with one objective only: leave out report_to, or return one value")

    def report(epoch: Epoch) -> None:
        if metric is not None and metric not in epoch.metrics:
            raise unknown("metric", metric, epoch.metrics)
        _check_direction(trial, metric or next(iter(epoch.metrics)))
        if epoch.reached:
            trial.report(epoch.leading if metric is None else epoch.metrics[metric], epoch.epoch)
            if trial.should_prune():
                raise optuna.TrialPruned(f"pruned after epoch {epoch.epoch}")

    return report


def _check_direction(trial: AnyTrial, metric: str) -> None:
    """Raise UserError for a metric of a built-in task that the study takes the other way: a pruner would stop the best."""
    right = next((way for task in TASKS.values() for name, way in task.directions.items() if metric == f"val_{name}"), None)
    if right and isinstance(trial, optuna.Trial) and (given := trial.study.direction.name.lower()) != right:
        raise UserError(
            f"{metric} is to {right}, but the study is to {given}, so its pruner would stop the best trials: "
            f"optuna.create_study(direction={right!r}), or report another metric"
        )
