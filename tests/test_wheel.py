"""The wheel: built, installed in a new environment without the checkout, and used there as a user would."""

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PIP = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check"]
SHIPPED = {
    str(path.relative_to(ROOT))
    for name, files in {"configs": "*.yaml", "studies": "*.yaml", "examples": "*.[pi]*"}.items()
    for path in (ROOT / name).glob(files)
}
FAST = ["-s", "network=lenet_300_100", "-s", "recipe.threads=1", "-s", "recipe.device=cpu"]

pytestmark = pytest.mark.slow


def done(words, **options):
    """What a command prints. Of the environment's variables it sees none by which a checkout would be found."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "SUBNET_SEARCH_"))}
    finished = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=300, env=env, **options)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    done([*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir", "--wheel-dir", folder, ROOT])
    (path,) = folder.iterdir()
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """A function that runs a program of a new environment in an empty folder, and returns what it prints.

    The environment has the wheel, and reads every other package from the environment of the tests.
    """
    home, folder = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("user")
    venv.create(home, symlinks=True)
    paths = sysconfig.get_paths("venv", {"base": str(home), "platbase": str(home)})
    bin_, packages = Path(paths["scripts"]), Path(paths["purelib"])
    done([*PIP, "--python", bin_ / "python", "install", "--no-deps", "--no-index", wheel])
    (packages / "others.pth").write_text("\n".join(path for path in sys.path if Path(path).name.endswith("-packages")))
    run = lambda program, *words: done([bin_ / program, *words], cwd=folder)  # noqa: E731
    assert Path(run("python", "-c", "import subnet_search; print(subnet_search.__file__)")).is_relative_to(packages)
    return run


def test_the_wheel_holds_the_package_and_what_init_copies(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "subnet_search").rglob("*.py")}
    wanted = {
        "subnet_search/py.typed",
        "subnet_search/reports/page.html",
        *code,
        *(f"subnet_search/shipped/{name}" for name in SHIPPED),
    }
    assert {name for name in names if ".dist-info/" not in name} == wanted


def test_a_first_hour_with_the_wheel(installed):
    command = lambda *words: installed("subnet-search", *words)  # noqa: E731
    version = installed("python", "-c", "import subnet_search; print(subnet_search.__version__)")
    assert command("--version") == f"subnet-search {version}"
    assert command("init").startswith(f"{len(SHIPPED)} files copied")
    assert "gumbel" in {method["name"] for method in json.loads(command("methods", "--json"))}
    words = ["configs/gumbel_digits.yaml", *FAST, "-s", "recipe.epochs=1", "--json"]
    assert json.loads(command("extract", *words))["network"] == "lenet_300_100"
    run = [word for setting in FAST[1::2] for word in ("-s", f"run.{setting}")]
    command("study", "run", "studies/quickstart.yaml", *run, "-s", "run.recipe.epochs=1", "--trials", "2", "--workers", "1")
    assert json.loads(command("study", "show", "quickstart", "--json"))["states"] == {"COMPLETE": 2}
