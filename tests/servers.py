"""A real PostgreSQL server for the tests that need one: its own, on loopback, thrown away afterwards.

A test module that says `pytest_plugins = ["servers"]` has the fixture `postgres`.
"""

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest


class Postgres:
    """A server in a folder of its own, with one superuser whose password is awkward. `postgres` will not run as root."""

    password = "p@ss:w/ord#1"  # everything that means something in a URL

    def __init__(self, programs: Path, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.programs, self.folder = programs, folder
        secret = folder / "password"
        secret.write_text(self.password)
        if os.getuid() == 0:
            for path in (folder, secret):
                shutil.chown(path, "postgres")
        self._run("initdb", "-U", "searcher", f"--pwfile={secret}", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "-N")
        self.databases = 0
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        who = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
        command = [*who, str(self.programs / program), "-D", str(self.folder / "data"), *arguments]
        done = subprocess.run(
            command, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert done.returncode == 0, done.stdout.decode()

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "start", "-w", "-l", str(self.folder / "log"), "-o", options)

    def stop(self, mode: str = "fast") -> None:
        """End it now: connections are closed. `immediate` is a crash."""
        self._run("pg_ctl", "stop", "-w", "-m", mode)

    def url(self, database: str = "", password: str = password) -> str:
        """The URL of a database, by default a new, empty one."""
        if not database:
            import psycopg

            self.databases += 1
            database = f"studies{self.databases}"
            server = {
                "host": "127.0.0.1",
                "port": self.port,
                "user": "searcher",
                "password": self.password,
                "dbname": "postgres",
            }
            with psycopg.connect(**server, autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {database}")
        return f"postgresql://searcher:{quote(password, safe='')}@127.0.0.1:{self.port}/{database}"


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running server; a test that stops it starts it again."""
    pytest.importorskip("psycopg", reason="psycopg is not installed (pip install 'subnet-search[postgres]')")
    installed = [Path(found).parent] if (found := shutil.which("initdb")) else []
    installed += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -int(path.parent.name))
    if not installed:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))  # its owner must reach it, so not in a folder of pytest's
    server = Postgres(installed[0], folder)
    yield server
    server.stop("immediate")
    shutil.rmtree(folder)
