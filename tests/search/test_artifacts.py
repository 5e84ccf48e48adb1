"""Artifacts: what reaches other machines through a folder or a bucket, and that no result depends on it."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
import torch
from faults import FORKS
from moto.server import ThreadedMotoServer
from optuna.artifacts import get_all_artifact_meta

from subnet_search.core.errors import Interrupted, RunError, UserError
from subnet_search.core.tensor_files import load_tensors
from subnet_search.extraction.config_file import check
from subnet_search.extraction.run_folder import CHECKPOINT
from subnet_search.search.engine import artifact_store
from subnet_search.search.engine.artifact_store import FILES, fetch, open_store, remove_files
from subnet_search.search.engine.worker import run_worker
from subnet_search.search.spec.study_spec import StudySpec
from subnet_search.search.storage.connect import load_study, open_storage
from subnet_search.search.studies.launcher import prepare_study, run_study
from subnet_search.search.studies.reproduce import retrain_trial

pytestmark = pytest.mark.slow

RUN = {
    "network": "lenet_300_100",
    "data": {"name": "digits", "limit": 200},
    "recipe": {"epochs": 3, "batch_size": 10, "threads": 1, "device": "cpu"},
}
LONG = {**RUN, "recipe": {**RUN["recipe"], "epochs": 40, "checkpoint_every": 4}}  # a second or more
SPACE = {"recipe.lr": {"float": [1, 100], "log": True}}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def spec(**more):
    return check(StudySpec, {"name": "toy", "run": RUN, "space": SPACE, "trials": 2, **more})


@pytest.fixture(scope="module")
def server():
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(params=["folder", pytest.param("bucket", marks=pytest.mark.long)])
def place(request, tmp_path, monkeypatch):
    """The setting of a store, and a function that gives the names of the files in it."""
    if request.param == "folder":
        folder = tmp_path / "kept"
        return str(folder), lambda: [path.name for path in folder.iterdir()]
    import boto3

    for key, value in {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "hush", "AWS_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(key, value)
    where = {"endpoint_url": request.getfixturevalue("server"), "region_name": "us-east-1"}
    name = f"studies-{uuid.uuid4().hex}"
    client = boto3.client("s3", **where)
    client.create_bucket(Bucket=name)
    return {"bucket": name, **where}, lambda: [one["Key"] for one in client.list_objects_v2(Bucket=name).get("Contents", [])]


def test_the_files_of_trials_come_back_after_their_folders_are_gone(place):
    settings, names = place
    study = run_study(spec(artifacts=settings))
    folder = Path(study.user_attrs["folder"])
    before = {path.relative_to(folder): path.read_bytes() for path in folder.glob("0*/*") if path.is_file()}
    assert {str(path) for path in before} == {f"000{number}/{name}" for number in (0, 1) for name in FILES}
    assert len(names()) == len(before)  # and no copy of a checkpoint
    shutil.rmtree(folder)
    for trial in study.get_trials():
        fetched = fetch(study, trial, folder / f"{trial.number:04d}")
        assert {path.name for path in fetched} == set(FILES)
        assert all(path.read_bytes() == before[path.relative_to(folder)] for path in fetched)
        assert fetch(study, trial, folder / f"{trial.number:04d}") == []
        assert "not_uploaded" not in trial.user_attrs
    remove_files(study, study.trials)
    assert names() == []
    assert fetch(study, study.get_trials()[0], Path("empty")) == []


def test_every_seed_of_a_trial_has_its_files():
    more = {"pruner": "wilcoxon", "repeats": 2, "trials": 1, "artifacts": "kept"}
    study = run_study(spec(**more))
    (trial,) = study.get_trials()
    assert len(get_all_artifact_meta(trial, storage=study._storage)) == 2 * len(FILES) - 1  # one log
    found = {str(path) for path in fetch(study, trial, Path("back"))}
    assert {"back/summary.json", "back/seed-1/summary.json"} <= found
    assert json.loads(Path("back/seed-1/summary.json").read_text())["sha256"] == trial.user_attrs["seeds"][1]["sha256"]
    assert len(os.listdir("kept")) == len(found)


def test_a_trial_that_fails_leaves_its_log():
    space = {"recipe.lr": {"choice": [1e30]}}
    with pytest.raises(RunError, match="5 trials failed in a row"):
        run_study(spec(run={**RUN, "extractor": "random"}, space=space, artifacts="kept"))
    study = load_study("toy", open_storage("sqlite:///runs/studies.db"))
    fetch(study, study.get_trials()[0], Path("back"))
    assert "failed: the loss is" in Path("back/log.txt").read_text()


def test_extract_compares_with_a_topology_that_was_found_elsewhere():
    study = run_study(spec(trials=1, artifacts="kept"))
    (trial,) = study.get_trials()
    shutil.rmtree(study.user_attrs["folder"])
    assert retrain_trial(trial, "alone").overlap is None
    assert retrain_trial(trial, "again", study=study).overlap == 1.0
    shutil.rmtree(study.user_attrs["folder"])
    shutil.rmtree("kept")
    Path("kept").write_text("in the way")
    assert retrain_trial(trial, "once more", study=study).same  # what it is compared with is not at hand, and no more than that


def test_files_of_the_study_that_a_trial_came_from_are_left_to_it():
    study = run_study(spec(trials=1, artifacts="kept"))
    there = os.listdir("kept")
    study.set_user_attr("folder", "runs/trials/an-import")
    remove_files(study, study.trials)
    assert os.listdir("kept") == there


# A trial goes on elsewhere


def lost(wanted, url, folder, names):
    """Run a worker in a folder and kill it once a copy of a checkpoint has been made."""
    folder.mkdir()
    prepare_study(wanted, url)
    process = FORKS.Process(target=at_work, args=(folder, dict(os.environ), wanted.name, url), daemon=True)
    process.start()
    while process.is_alive() and not any(name.endswith("checkpoint") for name in names()):
        time.sleep(0.02)
    process.kill()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def at_work(folder, environment, name, url):
    os.chdir(folder)
    os.environ.update(environment)
    torch.set_num_threads(1)
    artifact_store.LOOK = 0.02
    run_worker(name, url)


def goes_on(url, folder, monkeypatch, **options):
    """Run a worker in another folder; the study, and the log of its first trial there."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    run_worker("toy", url, **options)
    study = load_study("toy", open_storage(url))
    return study, (Path(study.user_attrs["folder"]) / "0000" / "log.txt").read_text()


def result(study):
    (trial,) = study.get_trials()
    kept = ("config", "sha256", "steps", "density", "val_accuracy", "test_accuracy", "passes")
    return trial.values, trial.intermediate_values, {key: trial.user_attrs[key] for key in kept}


def metrics(study):
    lines = (Path(study.user_attrs["folder"]) / "0000" / "metrics.jsonl").read_text().splitlines()
    return [{key: value for key, value in json.loads(line).items() if key != "seconds"} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The one trial of a long study, its metrics, and how many steps an epoch has."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        study = run_study(spec(run=LONG, trials=1))
        return result(study), metrics(study)


@pytest.mark.slow
def test_a_trial_whose_machine_is_lost_goes_on_elsewhere(place, undisturbed, tmp_path, monkeypatch):
    settings, names = place
    url, wanted = f"sqlite:///{tmp_path}/studies.db", spec(run=LONG, trials=1, artifacts=settings)
    lost(wanted, url, tmp_path / "there", names)
    study, log = goes_on(url, tmp_path / "here", monkeypatch)
    assert (result(study), metrics(study)) == undisturbed
    assert log.index("downloaded the checkpoint after step") < log.index(": validation accuracy")
    first = int(log.split("epoch ", 1)[1].split(":")[0])
    assert first > 1
    assert first % 4 == 1  # the one after a checkpoint
    assert not any(name.endswith("checkpoint") for name in names())


def interrupted(url, folder, monkeypatch, after=30):
    """Leave the study's trial after so many steps, in a folder; the step of its checkpoint, here and in the store."""
    monkeypatch.setattr(artifact_store, "POLL_SECONDS", 1000.0)  # so that only the last copy is made
    calls = iter(range(after))
    with pytest.raises(Interrupted):
        goes_on(url, folder, monkeypatch, should_stop=lambda: next(calls, None) is None)
    (here,) = folder.glob(f"runs/trials/*/0000/{CHECKPOINT}")
    (there,) = (folder.parent / "kept").iterdir()
    return [load_tensors(path, "checkpoint")[1]["progress"]["step"] for path in (here, there)]


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """The storage of a study whose trial was stopped, with its checkpoint in a store."""
    url = f"sqlite:///{tmp_path}/studies.db"
    prepare_study(spec(trials=1, artifacts=f"{tmp_path}/kept"), url)
    here, there = interrupted(url, tmp_path / "there", monkeypatch)
    assert here == there > 1
    return url


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The trial of the same study, undisturbed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("undisturbed"))
        return result(run_study(spec(trials=1)))


def test_what_a_stopped_worker_had_is_taken_up_elsewhere(whole, stopped, tmp_path, monkeypatch):
    study, log = goes_on(stopped, tmp_path / "here", monkeypatch)
    assert "downloaded the checkpoint" in log
    assert result(study) == whole


def spoil(path):
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (spoil, "is damaged and is ignored"),
        pytest.param(
            lambda path: path.write_bytes(path.read_bytes()[:1000]), "is damaged and is ignored", marks=pytest.mark.long
        ),
        pytest.param(lambda path: path.write_bytes(b""), "is damaged and is ignored", marks=pytest.mark.long),
        (lambda path: path.unlink(), "resumes (interrupted)"),
        (lambda path: (path.unlink(), path.mkdir()), "cannot download the stored checkpoint: Is a directory"),
    ],
)
def test_a_trial_begins_anew_where_its_copy_is_of_no_use(whole, stopped, tmp_path, monkeypatch, harm, said):
    (copy,) = (tmp_path / "kept").iterdir()
    harm(copy)
    study, log = goes_on(stopped, tmp_path / "here", monkeypatch)
    assert said in log
    assert "downloaded the checkpoint" not in log
    assert result(study) == whole
    assert not list((tmp_path / "here").rglob("fetched*"))


def test_the_checkpoint_that_is_further_is_taken(whole, stopped, tmp_path, monkeypatch):
    steps, copy = interrupted(stopped, tmp_path / "here", monkeypatch, after=3)  # one more, or two, here
    assert steps == copy > 30
    study, log = goes_on(stopped, tmp_path / "there", monkeypatch)  # where an older one lies
    assert f"downloaded the checkpoint after step {steps}" in log
    assert result(study) == whole


def test_a_checkpoint_of_other_versions_is_not_fetched(whole, stopped, tmp_path, monkeypatch):
    study = load_study("toy", open_storage(stopped))
    study._storage.set_trial_user_attr(study.get_trials()[0]._trial_id, "versions", {"torch": "1.0"})
    study, log = goes_on(stopped, tmp_path / "here", monkeypatch)
    assert "starting over" in log
    assert "downloaded the checkpoint" not in log
    assert result(study) == whole


@pytest.mark.slow
def test_a_seed_goes_on_from_its_own_checkpoint(tmp_path, monkeypatch):
    wanted = {"pruner": "wilcoxon", "repeats": 3, "trials": 1}
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    alone = run_study(spec(**wanted)).get_trials()[0]
    url = f"sqlite:///{tmp_path}/studies.db"
    prepare_study(spec(**wanted, artifacts=f"{tmp_path}/kept"), url)
    monkeypatch.setattr(artifact_store, "POLL_SECONDS", 1000.0)
    steps = iter(range(alone.user_attrs["steps"] + 10))  # into the second seed
    with pytest.raises(Interrupted):
        goes_on(url, tmp_path / "there", monkeypatch, should_stop=lambda: next(steps, None) is None)
    assert [path.name.partition("-0000-")[2] for path in (tmp_path / "kept").iterdir()] == ["seed-1-checkpoint"]
    study, log = goes_on(url, tmp_path / "here", monkeypatch)
    assert "downloaded the checkpoint" in log
    trial = study.get_trials()[0]
    assert (trial.values, trial.user_attrs["seeds"]) == (alone.values, alone.user_attrs["seeds"])
    assert not any(name.name.endswith("checkpoint") for name in (tmp_path / "kept").iterdir())


# A store that fails


def full(self, artifact_id, content_body, write=artifact_store._Folder.write):
    if not artifact_id.startswith("check-"):
        raise OSError(28, "No space left on device")
    write(self, artifact_id, content_body)


def test_a_store_that_fails_fails_no_trial(monkeypatch):
    monkeypatch.setattr(artifact_store._Folder, "write", full)
    study = run_study(spec(artifacts="kept"))
    assert [trial.state.name for trial in study.get_trials()] == ["COMPLETE", "COMPLETE"]
    for trial in study.get_trials():
        assert trial.user_attrs["not_uploaded"] == "No space left on device"
        assert (
            "cannot upload the files of the trial: No space left" in (Path(trial.user_attrs["folder"]) / "log.txt").read_text()
        )


@pytest.mark.slow
def test_training_does_not_wait_for_its_copies(monkeypatch):
    trained = []

    def write(self, artifact_id, content_body, write=artifact_store._Folder.write):
        if artifact_id.endswith("checkpoint"):
            (lines,) = Path("runs").rglob("metrics.jsonl")
            until = time.monotonic() + 60
            while len(lines.read_text().splitlines()) < 40 and time.monotonic() < until:
                time.sleep(0.01)
            trained.append(time.monotonic() < until)
        write(self, artifact_id, content_body)

    monkeypatch.setattr(artifact_store, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(artifact_store._Folder, "write", write)
    run_study(spec(run=LONG, trials=1, artifacts="kept"))
    assert trained == [True]
    assert len(os.listdir("kept")) == len(FILES)


def test_a_copy_that_is_cut_off_leaves_the_one_before(monkeypatch):
    store = artifact_store._Folder(Path("kept"))
    Path("file").write_bytes(b"first")
    with open("file", "rb") as file:
        store.write("name", file)

    def cut_off(source, target):
        target.write(b"sec")
        raise OSError("the disk")

    monkeypatch.setattr(shutil, "copyfileobj", cut_off)
    with open("file", "rb") as file, pytest.raises(OSError, match="the disk"):
        store.write("name", file)
    assert artifact_store._download(store, "name") == b"first"
    store.remove("name")
    assert os.listdir("kept") == []


def test_a_store_that_is_away_is_said_in_one_line():
    study = run_study(spec(trials=1, artifacts="kept"))
    shutil.rmtree("kept")
    Path("kept").write_text("in the way")
    with pytest.raises(RunError, match=r"^cannot fetch the files of trial 0 from kept: Not a directory$"):
        fetch(study, study.get_trials()[0], Path("back"))
    with pytest.raises(RunError, match=r"^cannot delete the study's files from kept: Not a directory$"):
        remove_files(study, study.trials)
    with pytest.raises(UserError, match=r"^cannot keep artifacts in kept: "):
        run_worker("toy", "sqlite:///runs/studies.db")


# What is refused


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"bucket": "b", "aws_secret_access_key": "hush"}, "do not store credentials in a study .aws_secret_access_key"),
        ({"bucket": "b", "AWS_SESSION_TOKEN": "hush"}, "do not store credentials in a study .AWS_SESSION_TOKEN"),
        ({"bucket": "b", "endpoint_url": "http://me:hush@host"}, "do not store credentials in a study .endpoint_url"),
        ({"bucket": "b", "region": "hush"}, "artifacts: unknown key 'region': did you mean 'region_name'"),
        ({"endpoint_url": "http://host"}, "artifacts: a bucket is missing"),
        ({"bucket": 3}, "artifacts: bucket must be text"),
        ({}, "artifacts: a bucket is missing"),
        ("s3://me:hush@b", r"artifacts: give a folder, or {bucket: NAME, endpoint_url: URL} for S3"),
        ("", "artifacts: give a folder"),
        (3, "artifacts"),
    ],
)
def test_a_wrong_place_is_refused_without_its_secrets(settings, said):
    with pytest.raises(UserError, match=said) as caught:
        spec(artifacts=settings)
    assert "hush" not in str(caught.value)
    assert "\n" not in str(caught.value)


def refused(settings):
    with pytest.raises(UserError) as caught:
        run_study(spec(artifacts=settings))
    assert "\n" not in str(caught.value)
    assert not Path("runs/trials").exists()
    return str(caught.value)


def test_a_folder_that_cannot_be_made_is_found_before_the_first_trial():
    Path("file").write_text("")
    assert refused("file/kept") == "cannot keep artifacts in file/kept: Not a directory"
    assert refused("file") == "cannot keep artifacts in file: File exists"


def test_a_bucket_that_is_missing_is_found_before_the_first_trial(server, monkeypatch):
    for key, value in {"AWS_ACCESS_KEY_ID": "me", "AWS_SECRET_ACCESS_KEY": "hush", "AWS_CONFIG_FILE": "/dev/null"}.items():
        monkeypatch.setenv(key, value)
    said = refused({"bucket": "nowhere", "endpoint_url": server, "region_name": "us-east-1"})
    assert said.startswith("cannot keep artifacts in the bucket nowhere: ")
    assert "NoSuchBucket" in said
    assert "Invalid bucket name" in refused({"bucket": "no where", "endpoint_url": server})
    assert "Invalid endpoint" in refused({"bucket": "nowhere", "endpoint_url": "host:9000"})


def test_without_boto3_a_bucket_is_refused_by_the_name_of_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    assert refused({"bucket": "some"}) == "artifacts in an S3 bucket need boto3 (pip install 'subnet-search[s3]')"


def test_without_credentials_a_bucket_is_refused(server, monkeypatch):
    import boto3

    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(key, raising=False)
    for key in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(key, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    said = refused({"bucket": "some", "endpoint_url": server, "region_name": "eu-west-1"})
    assert said == "cannot keep artifacts in the bucket some: Unable to locate credentials"


@pytest.mark.slow
def test_no_study_keeps_artifacts_unless_it_says_so():
    assert open_store(spec()) is None
    code = (
        "import sys; from subnet_search.search.studies.launcher import run_study;"
        "from subnet_search.search.spec.study_spec import StudySpec;"
        "from subnet_search.extraction.config_file import check;"
        f"study = run_study(check(StudySpec, {spec(trials=1).model_dump(exclude={'run'}) | {'run': RUN}!r}));"
        "names = 'subnet_search.search.engine.artifact_store', 'optuna.artifacts._boto3', 'boto3';"
        "print(len(study.trials), [name for name in names if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1 []"
