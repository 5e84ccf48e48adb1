"""Samplers and callbacks of OptunaHub, from a folder: loaded, seeded by the trial's number, and refused if they keep state."""

import sys

import optuna
import pytest

import subnet_search as ss
from subnet_search.core.errors import UserError
from subnet_search.search.engine.worker import run_worker
from subnet_search.search.spec.hub import _package, warn_if_moving
from subnet_search.search.storage.connect import open_storage

optunahub = pytest.importorskip("optunahub", reason="needs optunahub")

URL = "sqlite:///runs/studies.db"
RUN = {
    "network": "lenet_300_100",
    "data": {"name": "digits", "limit": 200},
    "extractor": {"name": "random", "density": 0.3},
    "recipe": {"epochs": 1, "threads": 1, "device": "cpu"},
}
SPEC = {"name": "toy", "run": RUN, "space": {"recipe.lr": {"float": [0.01, 0.1], "log": True}}, "trials": 4, "parallel": 2}
PACKAGES = {
    "samplers/good": """
import optuna

class Good(optuna.samplers.TPESampler):
    def __init__(self, seed=None, startup=2):
        super().__init__(seed=seed, n_startup_trials=startup)

__all__ = ["Good"]
""",
    "samplers/turns": """
import optuna

class Turns(optuna.samplers.RandomSampler):
    turn = 0
    def sample_independent(self, study, trial, name, domain):
        self.turn += 1
        return domain.low + (domain.high - domain.low) * (self.turn % 100) / 100
""",
    "samplers/told": """
import optuna

class Told(optuna.samplers.RandomSampler):
    best = None
    def after_trial(self, study, trial, state, values):
        self.best = min(self.best or trial.params["recipe.lr"], trial.params["recipe.lr"])
    def sample_independent(self, study, trial, name, domain):
        return self.best or super().sample_independent(study, trial, name, domain)
""",
    "samplers/unseeded": """
import optuna

class Unseeded(optuna.samplers.RandomSampler):
    def __init__(self):
        super().__init__()
""",
    "samplers/two": "from optuna.samplers import RandomSampler as A, TPESampler as B",
    "samplers/needs": "import a_package_that_is_not_there",
    "samplers/old": "from optuna import a_name_that_is_gone",
    "samplers/raises": "1 / 0",
    "callbacks/counter": """
class Counter:
    def __init__(self, file):
        self.file = file
    def __call__(self, study, trial):
        with open(self.file, "a") as file:
            print(trial.number, file=file)
""",
}


@pytest.fixture(autouse=True)
def in_a_folder_with_a_registry(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, text in PACKAGES.items():
        path = tmp_path / "package" / name / "__init__.py"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    yield
    _package.cache_clear()


def spec(package, name="toy", **options):
    return {**SPEC, "name": name, "sampler": {"hub": f"samplers/{package}", "folder": "package", **options}}


def found(study):
    return [(trial.params, trial.user_attrs["sha256"]) for trial in study.trials]


def test_a_sampler_gives_the_same_trials_in_any_number_of_workers():
    at_once = found(ss.run_study(spec("good", startup=1)))
    ss.run_study(spec("good", "parts", startup=1), trials=2)
    for trials in (3, 4):  # each from a new process's point of view: a new sampler, and nothing but the storage
        _package.cache_clear()
        run_worker("parts", URL, trials=trials, allow_imports=["optunahub"])
    assert found(ss.load_study("parts")) == at_once
    assert len({params["recipe.lr"] for params, _ in at_once}) == 4


def test_what_is_refused_and_why():
    for package in ("turns", "told"):
        with pytest.raises(
            UserError, match=rf"^the sampler samplers/{package} keeps state between trials that is not in the"
        ) as no:
            ss.run_study(spec(package))
        assert "\n" not in str(no.value)
    with pytest.raises(UserError, match=r"^the sampler samplers/unseeded proposes other values each time it is made with one"):
        ss.run_study(spec("unseeded"))
    assert optuna.get_all_study_names(open_storage(URL)) == []


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ({"hub": "samplers/good", "startap": 3}, r"unknown option 'startap' \(sampler samplers/good\): did you mean 'startup'"),
        ({"hub": "samplers/good", "startup": "many"}, "the sampler samplers/good"),
        ({"hub": "samplers/two"}, "samplers/two has 2 samplers: choose one with class: A or B"),
        ({"hub": "samplers/two", "class": "C"}, r"unknown sampler 'C' \(samplers/two\): valid: A, B"),
        (
            {"hub": "samplers/needs"},
            "samplers/needs of OptunaHub needs .* not installed: pip install a_package_that_is_not_there$",
        ),
        ({"hub": "samplers/old"}, "samplers/old of OptunaHub cannot be imported: ImportError: cannot import name 'a_name_that"),
        ({"hub": "samplers/raises"}, "cannot load samplers/raises: ZeroDivisionError: division by zero"),
        ({"hub": "samplers/missing"}, r"no samplers/missing in package: give the folder that has samplers/ and callbacks/"),
        ({"hub": "callbacks/counter"}, "hub: give the package as in samplers/NAME, got 'callbacks/counter'"),
        ({"hub": "samplers/../../evil"}, "hub: give the package as in samplers/NAME"),
        ({"hub": 3}, "hub must be text, got 3"),
        ({"hub": "samplers/good", "ref": "v1"}, "folder and ref exclude each other"),
    ],
)
def test_mistakes_are_one_line(sampler, message):
    with pytest.raises(UserError, match=message) as refused:
        ss.run_study({**SPEC, "sampler": {"folder": "package", **sampler}})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("settings", "warns"), [({}, "'main'"), ({"ref": "main"}, "'main'"), ({"ref": "v1"}, "'v1'")])
def test_a_reference_that_can_change_is_said(settings, warns, caplog):
    warn_if_moving("sampler", {"hub": "samplers/good", **settings})
    (record,) = caplog.records
    assert f"samplers/good is downloaded from {warns}, which can change between workers: write the commit" in record.message


def test_a_commit_or_a_folder_does_not_change(caplog):
    for settings in (
        {"hub": "samplers/good", "ref": "3f2a1c9"},
        {"hub": "samplers/good", "folder": "x"},
        {"name": "tpe"},
        "m:f",
    ):
        warn_if_moving("sampler", settings)
    assert not caplog.records


def test_without_the_package_or_a_network(monkeypatch):
    def unreachable(package, ref):
        raise OSError("Could not resolve host: github.com")

    monkeypatch.setattr(optunahub, "load_module", unreachable)
    with pytest.raises(
        UserError, match=r"^cannot download samplers/good from OptunaHub: .*; without a network, set `folder` to"
    ):
        ss.run_study({**SPEC, "sampler": {"hub": "samplers/good"}})
    monkeypatch.setitem(sys.modules, "optunahub", None)
    with pytest.raises(UserError, match=r"^samplers/good of OptunaHub needs optunahub: pip install 'subnet-search\[hub\]'$"):
        ss.run_study(spec("good"))


def test_a_stored_study_loads_nothing_without_permission():
    ss.run_study(spec("good"), trials=1)
    _package.cache_clear()
    with pytest.raises(
        UserError, match=r"imports optunahub:package/samplers/good, which a stored configuration may do only with"
    ):
        run_worker("toy", URL)
    assert _package.cache_info().currsize == 0
    assert run_worker("toy", URL, trials=2, allow_imports=["optunahub:package/samplers/good"]) == [1]


def test_a_callback(tmp_path):
    callback = {"hub": "callbacks/counter", "folder": "package", "file": "ended.txt"}
    ss.run_study({**SPEC, "trials": 2, "callbacks": {"on_trial": callback}})
    assert (tmp_path / "ended.txt").read_text().split() == ["0", "1"]
    with pytest.raises(UserError, match=r"unknown option 'fil' \(callback callbacks/counter\): did you mean 'file'"):
        ss.run_study({**SPEC, "callbacks": {"on_trial": {"hub": "callbacks/counter", "folder": "package", "fil": "a"}}})
