"""The storage layer: one process at a time, passwords that stay hidden, outages that pass."""

import multiprocessing
import os
import signal
import sqlite3
import sys
import threading
import traceback
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import InMemoryStorage
from sqlalchemy import create_engine, event
from sqlalchemy.exc import OperationalError, ProgrammingError

from subnet_search.core.errors import RunError, UserError
from subnet_search.search.storage import connect
from subnet_search.search.storage.connect import database_of, load_study, open_storage, safe_url, scrub
from subnet_search.search.storage.locks import exclusive
from subnet_search.search.storage.retry import patiently
from subnet_search.search.storage.write import replace_params, set_attrs

pytestmark = pytest.mark.slow

pytest_plugins = ["servers"]
FORKS = multiprocessing.get_context("forkserver")  # of a process that has imported all this: started at once
FORKS.set_forkserver_preload(["pytest", "subnet_search.search.storage.connect"])
PASSWORD = "p@ss:w/ord#1"
AWKWARD = "postgresql://me:p%40ss%3Aw%2Ford%231@host:5432/studies"  # the same, as it is written in a URL


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request, tmp_path) -> str:
    """A storage that nothing was written to, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/studies.db"
    return request.getfixturevalue("postgres").url()


@pytest.fixture
def study(url) -> optuna.Study:
    return optuna.create_study(storage=open_storage(url, create=True), study_name="s")


def test_sqlite_opens_with_write_ahead_logging_on_every_connection(tmp_path):
    storage = open_storage(f"sqlite:///{tmp_path}/deep/{{1}}.db", create=True)
    assert (tmp_path / "deep" / "{1}.db").is_file()
    with storage.engine.connect() as one, storage.engine.connect() as two:
        for connection in (one, two):
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1


def test_a_missing_sqlite_file_is_said_and_not_made(tmp_path):
    with pytest.raises(UserError, match=r"no studies yet: .*x\.db does not exist"):
        open_storage(f"sqlite:///{tmp_path}/x.db")
    assert not list(tmp_path.iterdir())


def test_an_unknown_study_is_said_with_its_storage_and_where_else_it_can_be(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    elsewhere = r".*the default storage: if the study's YAML file names another, give that one \(--storage URL\)"
    with pytest.raises(UserError, match="no studies yet: runs/studies.db does not exist" + elsewhere):
        open_storage("sqlite:///runs/studies.db")
    for name, more in (("runs/studies", elsewhere), ("other", r"\): did you mean 'mine'")):
        storage = open_storage(f"sqlite:///{name}.db", create=True)
        with pytest.raises(UserError, match=f"no study 'mime': there are no studies yet in sqlite:///{name}.db"):
            load_study("mime", storage)
        optuna.create_study(storage=storage, study_name="mine")
        with pytest.raises(UserError, match=rf"unknown study 'mime' \(in sqlite:///{name}\.db{more}"):
            load_study("mime", storage)


@pytest.mark.filterwarnings("ignore:Query string")
def test_an_unknown_study_is_said_without_the_password_of_its_storage():
    with pytest.raises(UserError, match=r"no study 'mine': there are no studies yet in sqlite:///.*[?]password=[*]{3} "):
        load_study("mine", open_storage("sqlite:///:memory:?password=hushhush"))


@pytest.mark.parametrize(
    ("url", "said"), [("x", "not a storage URL"), ("foo://x", "not a storage URL"), ("mysql://h/d", "MySQLdb")]
)
def test_what_cannot_be_opened_is_said_in_one_line(url, said):
    with pytest.raises(UserError, match=said) as caught:
        open_storage(url, create=True)
    assert "\n" not in str(caught.value)


def test_a_storage_object_is_refused_with_what_to_give():
    with pytest.raises(UserError, match=r"given by its URL, such as sqlite:///runs/studies.db, got an object: InMemoryStorage"):
        open_storage(InMemoryStorage())


def test_postgresql_without_its_driver_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(UserError, match=r"pip install 'subnet-search\[postgres\]'"):
        open_storage("postgresql://h/d")


def test_a_storage_without_a_lock_warns_once(monkeypatch, caplog):
    monkeypatch.setattr(connect, "_with_tables", lambda *_: InMemoryStorage())
    with exclusive(open_storage("mysql://me:secret@h/d"), "s"):
        pass
    assert [record.message.split(":")[0] for record in caplog.records] == ["no lock on a mysql storage"]


def open_at_once(url, barrier):
    barrier.wait()
    open_storage(url, create=True)


def together(processes: int, target, *arguments) -> list[int | None]:
    """Run a function in several processes that begin at the same moment; their exit codes."""
    barrier = FORKS.Barrier(processes)
    started = [FORKS.Process(target=target, args=(*arguments, barrier)) for _ in range(processes)]
    for process in started:
        process.start()
    for process in started:
        process.join()
    return [process.exitcode for process in started]


def test_an_empty_storage_opened_by_four_at_once(url):
    assert together(4, open_at_once, url) == [0] * 4


def count_up(url, file: Path, barrier):
    storage = open_storage(url)
    barrier.wait()
    for _ in range(200):
        with exclusive(storage, "s"):
            file.write_text(str(int(file.read_text()) + 1))


@pytest.mark.usefixtures("study")
def test_two_processes_never_hold_the_lock_together(url, tmp_path):
    file = tmp_path / "count"
    file.write_text("0")
    assert together(2, count_up, url, file) == [0, 0]
    assert file.read_text() == "400"


def hold(url, told):
    with exclusive(open_storage(url), "s"):
        told.send(None)
        signal.pause()


@contextmanager
def another_holds(url):
    ours, theirs = FORKS.Pipe()
    process = FORKS.Process(target=hold, args=(url, theirs))
    process.start()
    try:
        assert ours.poll(60)
        yield process
    finally:
        process.kill()
        process.join()


def test_a_lock_held_by_another_gives_up_in_one_line_and_passes_on_when_its_holder_is_killed(url, study):
    with another_holds(url) as process:
        with (
            pytest.raises(RunError, match="the study 's' has been locked by another process") as caught,
            exclusive(study._storage, "s", 0.2),
        ):
            pass
        assert "\n" not in str(caught.value)
        os.kill(process.pid, signal.SIGKILL)
        with exclusive(study._storage, "s", patience=30):
            pass


def test_an_error_under_the_lock_passes_through_and_frees_it(study):
    with pytest.raises(KeyError, match="mine"), exclusive(study._storage, "s"):
        raise KeyError("mine")
    with exclusive(study._storage, "s", patience=1):
        pass


def test_studies_of_a_server_have_locks_of_their_own(postgres):
    storage = open_storage(postgres.url())
    with exclusive(storage, "one"), exclusive(storage, "two", patience=1):
        both = True
    assert both


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("sqlite:///runs/studies.db", "sqlite:///runs/studies.db"),
        (AWKWARD, "postgresql://me:***@host:5432/studies"),
        (f"postgresql://me:{PASSWORD}@host/studies", "postgresql://me:***@host/studies"),
        ("postgresql://me:a/b@c?d@host/studies", "postgresql://me:***@host/studies"),
        (
            "postgresql://me@host/studies?sslmode=require&password=se%26cret",
            "postgresql://me@host/studies?sslmode=require&password=***",
        ),
        ("postgresql://me@tenant:secret@host/studies?sslpassword=x", "postgresql://me@tenant:***@host/studies?sslpassword=***"),
        ("postgres//me:secret@host/studies", "postgres//me:***@host/studies"),
        ("postgresql://host:5432/studies", "postgresql://host:5432/studies"),
    ],
)
def test_safe_url(url, safe):
    assert safe_url(url) == safe


@pytest.mark.parametrize(
    "text",
    [PASSWORD, AWKWARD.split("me:")[1].split("@host")[0], "p%40ss%3aw%2ford%231", "p%40ss:w/ord%231", "p@ss:w\\/ord#1"],
)
def test_scrub_finds_every_spelling(text):
    assert scrub(f"before {text} {text} after", AWKWARD) == "before *** *** after"


def test_scrub_knows_passwords_with_quotes_and_spaces():
    url = "postgresql://me:it%27s%20%5C%C3%A9@host/d"  # it's \é
    for text in ("it's \\é", repr("it's \\é"), "it%27s%20%5c%c3%a9", "it%27s+%5C%C3%A9"):
        assert "it" not in scrub(text, url), text


def test_no_error_holds_a_password(postgres, caplog):
    import psycopg

    right = postgres.url()
    wrong = [
        postgres.url("postgres", password="x" + PASSWORD),
        postgres.url("nosuch"),
        right.replace("searcher", "nobody"),
        right.replace(f":{postgres.port}", ":1"),
        right.replace("127.0.0.1", "nosuch.invalid"),
        right.replace(f":{postgres.port}", ":x"),
        f"postgresql://searcher:{PASSWORD}@127.0.0.1:{postgres.port}/d",
        f"{right}?sslmode=nonsense",
        f"{right}?nonsense=1",
        f"postgresql+psycopg://searcher@127.0.0.1:1/d?password={right.split(':')[2].split('@')[0]}",
    ]
    for url in wrong:
        with pytest.raises(UserError, match="storage") as caught:
            open_storage(url)
        told = "".join(traceback.format_exception(caught.value)) + caplog.text
        assert "ord#1" not in told, told
        assert "ord%231" not in told, told
        assert "***" in str(caught.value)
        assert "\n" not in str(caught.value)
    open_storage(right)
    with pytest.raises(psycopg.ProgrammingError) as said:  # as a driver would quote it; known from the storage opened
        psycopg.conninfo.conninfo_to_dict(f"{PASSWORD} x")
    assert PASSWORD in str(said.value)
    assert scrub(str(said.value)) == 'missing "=" after "***" in connection info string\n'


@pytest.mark.parametrize(
    ("change", "said"),
    [(("127.0.0.1:{port}/", "127.0.0.1:1/"), "Connection refused"), (("/studies", "/nosuch"), "does not exist")],
)
def test_what_is_wrong_with_a_server_is_said(postgres, change, said):
    before, after = change
    with pytest.raises(UserError, match=said):
        open_storage(postgres.url().replace(before.format(port=postgres.port), after))


def test_a_wrong_password_is_said(postgres):
    with pytest.raises(UserError, match=r'password authentication failed for user "searcher"$'):
        open_storage(postgres.url("postgres", password="wrong"))


def test_many_attributes_are_one_transaction(study):
    trial = study.ask()
    trial.set_user_attr("seed", 1)
    commits = []
    event.listen(connect.rdb(study._storage).engine, "commit", commits.append)
    attrs = {"seed": 2, "config": {"a": [1, None, "x" * 5000]}, "nothing": float("inf")}
    set_attrs(study._storage, trial._trial_id, attrs)
    assert len(commits) == 1
    set_attrs(study._storage, trial._trial_id, {"seed": 3, "constraints:x": -0.5}, system=True)
    set_attrs(study._storage, trial._trial_id, {})
    [stored] = study.get_trials()
    assert stored.user_attrs == attrs
    assert stored.system_attrs == {"seed": 3, "constraints:x": -0.5}


def test_attributes_are_written_all_or_none(study):
    trial = study.ask()
    with pytest.raises(TypeError):
        set_attrs(study._storage, trial._trial_id, {"good": 1, "bad": object()})
    with pytest.raises(KeyError):
        set_attrs(study._storage, 10**6, {"good": 1})
    study.tell(trial, 1.0)
    with pytest.raises(UpdateFinishedTrialError):
        set_attrs(study._storage, trial._trial_id, {"good": 1})
    assert study.get_trials()[0].user_attrs == {}


def test_parameters_of_finished_trials_are_replaced(study, url):
    for _ in range(3):
        study.tell(study.ask({"method": CategoricalDistribution(["snip"])}), 0.5)
    wider = {"method": CategoricalDistribution(["snip", "rigl"]), "density": FloatDistribution(0.1, 0.5, log=True)}
    wanted = {trial._trial_id: {"method": "snip", "density": 0.1 * (1 + trial.number)} for trial in study.trials[:2]}
    replace_params(database_of(study), wanted, wider)
    trials = optuna.load_study(study_name="s", storage=open_storage(url)).trials
    assert [trial.params for trial in trials] == [*wanted.values(), {"method": "snip"}]
    assert [trial.distributions == wider for trial in trials] == [True, True, False]


def test_attributes_of_a_storage_without_a_database():
    study = optuna.create_study()
    trial = study.ask()
    set_attrs(study._storage, trial._trial_id, {"a": 1, "b": 2})
    set_attrs(study._storage, trial._trial_id, {"c": 3}, system=True)
    assert (study.trials[0].user_attrs, study.trials[0].system_attrs) == ({"a": 1, "b": 2}, {"c": 3})


@pytest.mark.parametrize("at", ["SELECT trials", "INSERT", "SELECT trial_params", "SELECT pg_advisory"])
def test_a_server_that_comes_back_is_waited_for(postgres, at):
    """It crashes just before a statement, in the middle of a transaction: what was asked for is written, once, and read."""
    study = optuna.create_study(storage=open_storage(postgres.url()), study_name="s")
    trial = study.ask()
    back = threading.Thread(target=postgres.start)

    @event.listens_for(connect.rdb(study._storage).engine, "before_cursor_execute")
    def crash(connection, cursor, statement, *_):
        if at in statement and not back.ident:
            postgres.stop("immediate")
            back.start()

    def count_up():
        with exclusive(study._storage, "s", patience=30):
            seen = study.get_trials()[0].user_attrs.get("count", 0)
            set_attrs(study._storage, trial._trial_id, {"count": 1, "more": 2})
            return seen

    assert patiently(count_up) == 0
    back.join()
    assert study.get_trials()[0].user_attrs == {"count": 1, "more": 2}
    study.tell(trial, 1.0)
    assert study.best_value == 1.0


def test_a_lock_lost_with_its_server_is_told_and_free_again(postgres, caplog):
    storage = open_storage(postgres.url())
    with exclusive(storage, "s"):
        postgres.stop()
        postgres.start()
    assert "the lock of the study 's' was lost: " in caplog.text
    with exclusive(storage, "s", patience=1):
        pass


def test_a_server_that_stays_away_is_one_line(postgres):
    study = optuna.create_study(storage=open_storage(postgres.url()), study_name="s")
    postgres.stop()
    try:
        for call in (study.get_trials, lambda: exclusive(study._storage, "s").__enter__()):
            with pytest.raises(RunError, match=r"the storage has been unavailable for \d+ seconds: .*Connection refused$"):
                patiently(call, patience=0.3)
    finally:
        postgres.start()


def test_a_locked_file_is_waited_for(tmp_path):
    """SQLite's own lock, held by a stranger who lets go when the second try begins."""
    file = tmp_path / "x.db"
    stranger = sqlite3.connect(file, isolation_level=None)
    stranger.execute("CREATE TABLE t (x)")
    stranger.execute("BEGIN IMMEDIATE")
    engine = create_engine(f"sqlite:///{file}", connect_args={"timeout": 0})
    tries = []

    def write(x):
        tries.append(x)
        if len(tries) == 2:
            stranger.execute("COMMIT")
        with engine.begin() as connection:
            return connection.exec_driver_sql("INSERT INTO t VALUES (?)", (x,)).rowcount

    assert patiently(write, 5) == 1
    assert tries == [5, 5]


@pytest.mark.parametrize("error", [UserError("x"), KeyError("x"), RuntimeError("x"), optuna.TrialPruned()])
def test_what_is_no_outage_passes_at_once(error):
    calls = []

    def fail():
        calls.append(None)
        raise error

    with pytest.raises(type(error)):
        patiently(fail)
    assert len(calls) == 1


def test_a_missing_table_is_no_outage(url):
    storage = open_storage(url, create=True)
    with storage.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE trial_heartbeats")

    def look():
        with storage.engine.connect() as connection:
            connection.exec_driver_sql("SELECT * FROM trial_heartbeats")

    with pytest.raises((OperationalError, ProgrammingError)):
        patiently(look, patience=0.2)
