"""The fork server with jobs of a few lines: what a job gets and gives, and every way in which the server can be gone."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from sqlib.places import REPOSITORY
from sqlib.workflow import forkserver

JOBS = """
import json, os, signal, sys, time

def main():
    what = sys.argv[1]
    if what == "tell":
        import random
        told = {"argv": sys.argv[1:], "environment": dict(os.environ), "folder": os.getcwd(), "pid": os.getpid(),
                "umask": os.umask(0o022), "random": random.random(), "modules": sorted(sys.modules)}
        print(json.dumps(told))
        print("and this", file=sys.stderr)
    elif what == "exit":
        sys.exit(int(sys.argv[2]))
    elif what == "say":
        sys.exit("a text")
    elif what == "raise":
        raise ValueError("broken")
    elif what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stay":
        try:
            print(os.getpid(), flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            sys.exit(130)
"""
HOLD = """
import os, sys
from pathlib import Path
from sqlib.workflow import forkserver

with forkserver.started(dict(os.environ), Path(sys.argv[1])) as environment:
    print(environment.get(forkserver.ADDRESS, ""), flush=True)
    sys.stdin.read()
"""


class Server:
    """A fork server over a copy of the package whose only command is the jobs above."""

    def __init__(self, folder: Path, jobs: str = JOBS, more: str = ""):
        (folder / "sqlib/workflow").mkdir(parents=True)
        (folder / "sqlib/__init__.py").touch()
        for name in ("__main__.py", "workflow/__init__.py", "workflow/forkserver.py", "workflow/surroundings.py"):
            (folder / "sqlib" / name).write_text((REPOSITORY / "sqlib" / name).read_text())
        with open(folder / "sqlib/workflow/forkserver.py", "a") as file:
            file.write(f'MODULES = ("sqlib.workflow.commands",)\nPATIENCE = 1.0\n{more}')
        (folder / "sqlib/workflow/commands.py").write_text(jobs)
        self.folder, self.log = folder, folder / "forkserver.log"
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        self.environment = {**kept, "PYTHONPATH": str(folder), **forkserver.limits(1)}
        self.holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(self.log)], env=self.environment, cwd=folder, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        self.address = self.holder.stdout.readline().strip()

    @property
    def pid(self) -> int:
        return int(Path(f"/proc/{self.holder.pid}/task/{self.holder.pid}/children").read_text().split()[0])

    def start(self, *arguments: str, out=subprocess.PIPE, err=subprocess.PIPE, **more) -> subprocess.Popen:
        environment = {**self.environment, "SQLIB_JOB": "1", forkserver.ADDRESS: self.address, **more}
        command = [sys.executable, "-m", "sqlib", *arguments]
        return subprocess.Popen(
            command, env=environment, cwd=self.folder, text=True, stdout=out, stderr=err,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # ignored where the tests run behind &
        )  # fmt: skip

    def run(self, *arguments: str, **more) -> tuple[int, str, str]:
        """(exit code, output, errors); into files, as jobs write: a server that stands still holds on to what it was given."""
        out, err = self.folder / "out", self.folder / "err"
        with open(out, "w") as out_file, open(err, "w") as err_file:
            code = self.start(*arguments, out=out_file, err=err_file, **more).wait(60)
        return code, out.read_text(), err.read_text()

    def stay(self) -> tuple[subprocess.Popen, int]:
        """(the go-between of a job that stays, the job's own process)."""
        process = self.start("stay")
        return process, int(process.stdout.readline())

    def end(self) -> None:
        self.holder.communicate(timeout=20)


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path / "package")
    yield server
    server.end()
    assert not Path(server.address).parent.exists()


def gone(pid: int, seconds: float = 10) -> bool:
    """Whether a process ends within so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.02)
    return False


def test_a_job_gets_what_a_process_of_its_own_gets(server):
    os.mkdir(place := server.folder / "elsewhere")
    told = []
    for address in (server.address, server.address, ""):
        environment = {**server.environment, "SQLIB_JOB": "1", **({forkserver.ADDRESS: address} if address else {})}
        done = subprocess.run(
            [sys.executable, "-m", "sqlib", "tell", "a b", "--c"], env=environment, cwd=place, capture_output=True,
            text=True, preexec_fn=lambda: os.umask(0o027),
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (0, "and this\n")
        told.append(json.loads(done.stdout))
    first, second, alone = told
    assert first["argv"] == alone["argv"] == ["tell", "a b", "--c"]
    assert first["folder"] == alone["folder"] == str(place)
    assert first["umask"] == alone["umask"] == 0o027
    assert first["environment"] == alone["environment"]
    assert first["random"] != second["random"]
    assert first["pid"] != second["pid"]
    assert "numpy" in first["modules"] and "numpy" not in alone["modules"]  # so the one was forked, the other not


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("exit", "0"), 0, ""),
        (("exit", "2"), 2, ""),
        (("say",), 1, "a text"),
        (("raise",), 1, "ValueError: broken"),
        (("die",), 137, "the process of this job was killed"),
    ],
)
def test_a_job_ends_as_a_process_of_its_own_ends(server, arguments, code, words):
    found, out, err = server.run(*arguments)
    assert (found, out) == (code, "")
    assert words in err and bool(err) == bool(words)
    assert server.run("exit", "0") == (0, "", "")  # and the server goes on


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_go_between_reaches_the_job(server, number, code):
    process, job = server.stay()
    process.send_signal(number)
    assert process.communicate(timeout=60) == ("", "") and process.returncode == code
    assert gone(job, 1)


def test_a_job_ends_when_its_go_between_is_killed(server):
    process, job = server.stay()
    other, beside = server.stay()
    process.kill()
    process.communicate()
    assert gone(job)
    assert not gone(beside, 0.2)  # and no other does
    other.terminate()
    other.communicate(timeout=60)
    assert gone(beside)


def test_a_killed_server_takes_no_job_with_it_and_the_next_ones_run_by_themselves(server):
    process, job = server.stay()
    os.kill(server.pid, signal.SIGKILL)
    assert not gone(job, 0.5)
    code, out, err = server.run("tell")
    assert code == 0 and "not forked, in a process of its own: it does not answer" in err
    assert "numpy" not in json.loads(out)["modules"]
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


def test_a_server_that_is_starved_is_waited_for_once(server):
    assert server.run("exit", "0") == (0, "", "")
    os.kill(server.pid, signal.SIGSTOP)
    started = time.monotonic()
    code, _, err = server.run("exit", "4")
    assert code == 4 and "does not answer" in err and time.monotonic() - started > 2.5
    started = time.monotonic()
    code, _, err = server.run("exit", "5")
    assert code == 5 and "does not answer" in err and time.monotonic() - started < 2
    os.kill(server.pid, signal.SIGCONT)  # what it was asked for and given up is not made after all
    time.sleep(0.3)
    assert not Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text()


def test_a_server_that_cannot_fork_leaves_a_job_to_its_go_between(tmp_path):
    more = "def none_left():\n    raise BlockingIOError(11, 'too many processes')\n\n\nos.fork = none_left\n"
    server = Server(tmp_path / "package", more=more)
    code, _, err = server.run("exit", "4")
    assert code == 4 and "not forked, in a process of its own: it could not fork" in err
    server.end()


def test_a_server_with_other_code_forks_nothing(server):
    assert server.run("exit", "0") == (0, "", "")
    with open(server.folder / "sqlib/workflow/commands.py", "a") as file:
        file.write("# changed\n")
    code, _, err = server.run("exit", "3")
    assert (
        code == 3
        and err == "not forked, in a process of its own: the code was changed since the fork server was started\n"
    )


def test_a_job_with_another_environment_is_not_forked(server):
    code, _, err = server.run("exit", "3", SQLIB_DATA="/elsewhere")
    assert code == 3 and "SQLIB_DATA is another than the fork server's" in err


def test_a_server_that_cannot_import_says_so_in_its_log(tmp_path):
    server = Server(tmp_path / "package", "import not_there_at_all")
    code, _, err = server.run("exit", "3")
    assert code == 1 and "does not answer" in err and "not_there_at_all" in err  # the job cannot work, either
    assert "not_there_at_all" in server.log.read_text()
    server.end()


def test_where_temporary_files_have_a_long_path_it_listens_elsewhere(tmp_path, monkeypatch):
    (tmp_path / ("x" * 100)).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 100)))
    with forkserver.started(dict(os.environ), tmp_path / "log") as environment:
        assert len(environment[forkserver.ADDRESS]) < 100


def test_where_no_socket_can_be_there_is_no_server(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "sqlib.workflow.surroundings.short_folder", lambda: tempfile.mkdtemp(prefix="x" * 100, dir=tmp_path)
    )
    with forkserver.started({"A": "1"}, tmp_path / "log") as environment:
        assert environment == {"A": "1"}
    assert "too long" in (tmp_path / "log").read_text()


def test_a_server_ends_with_what_started_it(tmp_path):
    server = Server(tmp_path / "package")
    pid = server.pid
    server.holder.kill()
    server.holder.communicate(timeout=60)
    assert gone(pid)


def test_only_jobs_of_a_study_ask_for_it(monkeypatch):
    monkeypatch.delenv("SQLIB_JOB", raising=False)
    monkeypatch.setenv(forkserver.ADDRESS, "/nowhere")
    assert forkserver.run_there(["exit", "0"]) is None


def test_a_process_with_threads_or_other_limits_is_not_forked():
    code = (
        "import os, sys, threading; from sqlib.workflow import forkserver\n"
        "assert forkserver.why_not_forked(1) is None and forkserver.why_not_forked(2) is None\n"
        "os.environ.update(forkserver.limits(1)); import numpy\n"
        "assert forkserver.why_not_forked(1) is None and 'other than 2 threads' in forkserver.why_not_forked(2)\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()\n"
        "assert forkserver.why_not_forked(1) == 'threads are running'"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_refusal_that_comes_with_the_end_of_the_connection_is_read(server, monkeypatch, capsys):
    """The server answers and hangs up while the go-between has not run on since it sent its request."""
    send = socket.send_fds

    def send_and_be_answered(connection, *rest):
        sent = send(connection, *rest)
        gone_there = select.poll()
        gone_there.register(connection, select.POLLHUP)
        assert gone_there.poll(10_000)
        return sent

    monkeypatch.setattr(socket, "send_fds", send_and_be_answered)
    monkeypatch.setattr(forkserver, "die_with_parent", lambda number: None)
    monkeypatch.setenv("SQLIB_JOB", "1")
    monkeypatch.setenv(forkserver.ADDRESS, server.address)
    monkeypatch.setenv("SQLIB_OTHER", "than the server's")
    assert forkserver.run_there(["tell"]) is None
    assert "is another than the fork server's" in capsys.readouterr().err
    assert Path(server.address).exists()
