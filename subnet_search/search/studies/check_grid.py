"""Check the methods of a comparison on its network and data, before the first run."""

from subnet_search.core.errors import UserError
from subnet_search.data import Batches, load
from subnet_search.extraction.run_folder import RunFolder
from subnet_search.extraction.session import RunSession
from subnet_search.extractors import Clock
from subnet_search.search.studies.launcher import check_no_objects
from subnet_search.search.studies.method_grid import Grid


def check_grid(grid: Grid, workers: int = 1) -> None:
    """Raise UserError, which names the method and the reason, when one of them cannot run. Nothing is trained.

    Objects that other processes cannot have are refused with more than one worker.

    The network is built once for each method. A method that fails only on data, as in its first gradients, is not found.
    """
    if workers > 1:
        check_no_objects(grid.spec)
    passed, sessions = grid.spec.passed, dict[str, RunSession]()
    data = passed.data or load(grid.spec.run.data, grid.spec.run.task.kind_of_labels)
    first = {(cell.row.method, cell.row.density): cell for cell in reversed(grid.cells)}  # dense first, with no method to blame
    for (method, density), cell in first.items():
        config = grid.spec.config(cell.attribute["values"]).resolve()
        try:
            if method not in sessions:
                init = str(config.network.init)
                sessions[method] = RunSession(config, RunFolder(None), module=passed.network, init=init, data=data)
            supernet, recipe = sessions[method].supernet, config.recipe
            supernet.extractor = config.extractor  # at this density
            batches = Batches(data.train, data.mean, data.std, recipe.batch_size, cell.seed, recipe.augment)
            supernet.check(Clock(0, batches.steps_per_epoch * recipe.epochs, cell.seed))
        except UserError as error:
            if method == "dense":
                raise
            raise UserError(f"{method} cannot run at density {density:g}: {error}") from error
