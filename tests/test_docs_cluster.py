"""The files for clusters parse, and every command in them and in their page is one that there is."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import typer
import yaml

from subnet_search.cli import STOPPED
from subnet_search.cli.app import app

DOCS = Path(__file__).parents[1] / "docs"
PAGE, SLURM, KUBERNETES = DOCS / "cluster.md", DOCS / "cluster" / "slurm.sh", DOCS / "cluster" / "kubernetes.yaml"


def job():
    (manifest,) = yaml.safe_load_all(KUBERNETES.read_text())
    return manifest["spec"]


def container():
    (found,) = job()["template"]["spec"]["containers"]
    return found


def in_text(path):
    """The commands on lines that begin with one, be it behind `srun`."""
    lines = re.findall(r"^(?:srun )?(subnet-search .*)$", path.read_text(), re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def parse(words):
    """What the command line makes of a command; raises what the parser finds wrong."""
    command = typer.main.get_command(app)
    program, *rest = words
    assert program == "subnet-search"
    while hasattr(command, "commands"):
        command = command.commands[rest.pop(0)]
    return command.make_context(command.name, rest).params


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_the_slurm_file_is_a_shell_script():
    done = subprocess.run(["bash", "-n", SLURM], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_slurm_gives_a_worker_time_and_the_others_a_turn():
    options = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", SLURM.read_text(), re.MULTILINE))
    assert options["signal"] == "TERM@60"  # to what srun runs; with B: it would be the script alone
    assert "requeue" in options
    assert re.fullmatch(r"0-\d+%\d+", options["array"])
    assert [words[1:3] for words in in_text(SLURM)] == [["study", "worker"]]
    assert parse(in_text(SLURM)[0])["name"] == "$1"


def test_the_kubernetes_file_is_a_job_whose_password_is_a_secret():
    spec, worker = job(), container()
    assert "completions" not in spec
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # as a podFailurePolicy asks
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] >= 60
    assert parse(worker["command"])["name"] == "quickstart"
    secrets = {variable["name"]: variable["valueFrom"] for variable in worker["env"] if "valueFrom" in variable}
    assert secrets["SUBNET_SEARCH_STORAGE"] == {"secretKeyRef": {"name": "subnet-search", "key": "storage"}}
    (codes,) = [rule["onExitCodes"] for rule in spec["podFailurePolicy"]["rules"] if "onExitCodes" in rule]
    assert (codes["containerName"], codes["values"]) == (worker["name"], [STOPPED])


def test_the_variable_of_the_files_is_the_one_that_is_read(monkeypatch):
    monkeypatch.setenv("SUBNET_SEARCH_STORAGE", "postgresql://me@host/studies")
    assert parse(container()["command"])["storage"] == "postgresql://me@host/studies"


@pytest.mark.parametrize("words", in_text(PAGE), ids=" ".join)
def test_every_command_on_the_page_is_one(words):
    params = parse(words)
    spec = Path(params.get("spec", ""))
    assert spec.suffix != ".yaml" or (DOCS.parent / spec).is_file()


def test_the_page_leads_to_its_files():
    links = re.findall(r"\]\((\S+?)\)", PAGE.read_text())
    assert len(in_text(PAGE)) >= 4
    assert {DOCS / link for link in links} == {SLURM, KUBERNETES}
