"""The teacher of a run with `recipe.distill`, and what is checked of it before training."""

import logging
from pathlib import Path
from typing import Any

import torch
from torch import nn

from subnet_search.artifact.subnetwork import state_in
from subnet_search.core.errors import UserError
from subnet_search.core.nested import moved
from subnet_search.extraction.config import RunConfig
from subnet_search.extraction.provenance import module_sha256
from subnet_search.extractors import RelevanceLearner
from subnet_search.nets import call, compared, not_accepted, opened, own_copy, put_state
from subnet_search.tasks import Task
from subnet_search.training import Distill

log = logging.getLogger(__name__)
KEY = "recipe.distill.teacher"


def with_teacher(config: RunConfig, teacher: nn.Module) -> RunConfig:
    """A resolved configuration with the hash of a teacher that was passed from Python.

    Raises UserError when the configuration names another teacher.
    """
    distill = config.recipe.distill or Distill()
    if distill.teacher:
        raise UserError(f"a teacher was passed, and {KEY} names another: remove one of them")
    found = module_sha256(teacher)
    if distill.teacher_sha256 not in (None, found):
        raise UserError(f"the teacher differs from the original run's: its hash was {distill.teacher_sha256}, now {found}")
    distill = distill.model_copy(update={"teacher_sha256": found})
    return config.model_copy(update={"recipe": config.recipe.model_copy(update={"distill": distill})})


def teacher_of(config: RunConfig, net: nn.Module, init: str, given: nn.Module | None) -> nn.Module | None:
    """The teacher of a resolved configuration. None: there is none, or it is the network as the run begins.

    net: the initialised network. init: its initialisation. given: a teacher that was passed from Python. Raises UserError
    when it cannot be read, or is of another network.
    """
    distill = config.recipe.distill
    if distill is None or given is not None:
        return given
    if distill.teacher:
        teacher = own_copy(opened(net))
        path = Path(distill.teacher).expanduser()
        put_state(teacher, state_in(path, KEY), config.network.name, f"{path} ({KEY})")
        return teacher
    if distill.teacher_sha256:
        raise UserError(f"the teacher of this run was passed from Python: pass teacher=..., or set {KEY}")
    if init != "keep":
        log.warning("the teacher is the network as the run begins, and it is untrained (init: %s): set %s", init, KEY)
    return None


@torch.no_grad()
def check_distance(config: RunConfig, task: Task, net: nn.Module, teacher: nn.Module | None, inputs: Any) -> None:
    """Raise UserError when the run compares outputs that cannot be compared.

    inputs: of a small batch, as passed to the network.
    """
    extractor = config.extractor
    follows = isinstance(extractor, RelevanceLearner) and extractor.follows_dense
    if (follows or config.recipe.distill) and not task.has_distance:
        asks = f"extractor.loss={extractor.model_dump().get('loss')}" if follows else "recipe.distill"
        raise UserError(f"{asks} compares outputs of two networks, and the task {task.name} has no method distance for that")
    if teacher is None:
        return
    shapes, name = [], f"the teacher, {type(teacher).__name__},"
    for one in (net, teacher):
        was_training, device = one.training, next((p.device for p in one.parameters()), torch.device("cpu"))
        try:
            shapes.append(tuple(compared(call(one.eval(), moved(inputs, device))).shape))
        except UserError:
            raise
        except Exception as error:  # anything that a user's network raises
            raise not_accepted(name, inputs, error) from error
        finally:
            one.train(was_training)
    if shapes[0] != shapes[1]:
        raise UserError(f"{name} returns outputs of shape {shapes[1]}, and the network {shapes[0]}: they must be equal")
