"""A process that has done the imports once, and forks itself for each job of a study: most of a short job is imports.

`started` keeps one while a study is made; `python -m sqlib JOB` is then a go-between (`run_there`): it hands over its
arguments, environment and output, passes signals on, and ends as its job ends. A job is nobody's child but tied to its
go-between: when that is gone, it ends. So a fork server that is killed takes no job with it, and where it is gone, does
not answer, cannot fork, or has imported other code than is there now, a job runs in its go-between, as it does
everywhere else.

What a fork inherits is imports, and what is compiled for a first page: no thread runs in the server, and it computes
nothing of a study.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

ADDRESS = "SQLIB_FORKSERVER"
"""Environment variable of a study's jobs: the socket at which its fork server listens."""
PATIENCE = 10.0
"""Seconds for an answer of the fork server, which needs milliseconds."""
LIBRARIES = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
KERNEL = {
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
}
"""Of every kernel's environment, and read when something is imported."""
_OWN = {
    "_", "PWD", "OLDPWD", "SHLVL", "TMPDIR", "TMP", "TEMP", "TEMPDIR", "GOTO_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
}  # fmt: skip
"""What a shell and Snakemake set anew for a job, and no import depends on. (`limits` Snakemake sets, too: to a job's threads.)"""
IN_NOTEBOOKS = (
    "torch", "IPython.core.completerlib", "IPython.core.debugger", "IPython.core.logger", "IPython.core.oinspect",
    "IPython.extensions.storemagic", "ipykernel.debugger", "ipykernel.kernelapp", "matplotlib.backends.backend_agg",
    "matplotlib.pyplot", "pandas", "sqlib.report.figures", "sqlib.report.cells", "sqlite3", "tornado.locks",
    "tornado.platform.asyncio",
)  # fmt: skip
"""What every notebook and its kernel import, or nearly so."""
MODULES = (
    *IN_NOTEBOOKS, "captum.attr", "ipython_pygments_lexers", "jinja2.ext", "latex2mathml.converter", "nbconvert",
    "pandas.io.formats.style", "papermill", "pygments.unistring", "scipy.stats", "seaborn", "skimage.metrics",
    "sqlib.study.claims", "sqlib.workflow.commands", "sqlib.study.jobs.deployed", "sqlib.workflow.notebooks",
    "sqlib.report.front_page", "sqlib.report.live", "sqlib.report.html", "sqlib.study.jobs.post_training",
    "sqlib.study.jobs.quality", "sqlib.report.quality_table", "sqlib.report.runs_table", "sqlib.study.jobs.roar",
)  # fmt: skip
"""What the jobs of a study and their notebooks import."""

_connection: socket.socket | None = None  # of a forked job, to its go-between


def limits(threads: int) -> dict[str, str]:
    """The environment variables by which numerical libraries take so many threads; they are read when one is imported."""
    return {f"{library}_NUM_THREADS": str(threads) for library in LIBRARIES}


def die_with_parent(number: int, parent: int | None = None) -> None:
    """Have the system send this process a signal when its parent ends, however that ends (Linux only).

    parent: its process, where known: if that has ended already, the signal is sent at once.
    """
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(1, number)  # 1 = PR_SET_PDEATHSIG
        if parent is not None and os.getppid() != parent:
            os.kill(os.getpid(), number)


def call_itself(name: str) -> None:
    """Name this process, for `ps` and `top`, in at most 15 letters: a fork has the command line of what it was forked from."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(15, name.encode())  # 15 = PR_SET_NAME


def why_not_forked(threads: int) -> str | None:
    """Why this process must not be forked for work on so many threads, in a few words; None if it may be."""
    if sys.platform != "linux":
        return "not on Linux"
    try:
        if len(os.listdir("/proc/self/task")) > 1:
            return "threads are running"
    except OSError:
        return "there is no /proc to see threads in"
    if {"numpy", "torch"} & sys.modules.keys():
        if any(os.environ.get(name) != value for name, value in limits(threads).items()):
            return f"libraries were imported for other than {threads} thread{'s' * (threads > 1)}"
        if "torch" in sys.modules and sys.modules["torch"].cuda.is_initialized():
            return "a GPU is in use"
    return None


# ---- the server ------------------------------------------------------------------------------------------------------


@contextmanager
def started(environment: Mapping[str, str], log: Path) -> Iterator[dict[str, str]]:
    """The environment for a study's jobs: with the address of a fork server that runs as long as the `with` block does.

    It imports in the background; a job that comes earlier waits for it. What it has to say goes to the file `log`. Where
    there can be none, the environment is as it was.
    """
    import shutil
    import subprocess

    from sqlib.workflow.surroundings import short_folder

    if sys.platform != "linux":
        yield dict(environment)
        return
    folder = process = address = None
    own = os.getpid()
    try:
        with socket.socket(socket.AF_UNIX) as listener, open(log, "w") as words:
            try:
                folder = short_folder()
                listener.bind(f"{folder}/fork")
                listener.listen(4096)
                code = f"from sqlib.workflow.forkserver import serve; serve({listener.fileno()})"
                process = subprocess.Popen(
                    [sys.executable, "-c", code], env={**environment, **limits(1), **KERNEL}, stdin=subprocess.DEVNULL,
                    stdout=words, stderr=words, pass_fds=[listener.fileno()], start_new_session=True,
                    preexec_fn=lambda: die_with_parent(signal.SIGKILL, own),
                )  # fmt: skip
                address = f"{folder}/fork"
            except OSError as error:  # no room, no sockets on this file system, no more processes
                words.write(f"no fork server: {error}\n")
        yield {**environment, ADDRESS: address} if address else dict(environment)
    finally:
        if process is not None:
            _end(process)
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _end(process) -> None:
    """End a fork server and whatever was forked from it: no job is left by now, unless it hears nothing."""
    import time

    process.kill()
    process.wait()
    for _ in range(20):  # a job whose go-between has just been killed is about to end in order
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 0)
            time.sleep(0.05)
            continue
        return
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def serve(descriptor: int) -> None:
    """Import, then fork a job for each request that comes in on this listening socket; never returns but in a fork's end."""
    call_itself("sqlib forks")
    code = _code()
    _import(MODULES)
    for name in MODULES:
        getattr(sys.modules[name], "rehearse", lambda: None)()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the system clears away the forks that have ended
    listener = socket.socket(fileno=descriptor)
    while True:
        connection, _ = listener.accept()
        connection.settimeout(PATIENCE)
        with suppress(OSError, ValueError), connection:
            asked, files = _receive(connection)
            try:
                refused = _refusal(asked, code)
                connection.sendall(json.dumps(refused).encode() + b"\n")
                if refused is None and connection.recv(1) == b"!" and os.fork() == 0:
                    try:
                        listener.close()
                        _become(asked, files, connection)
                    finally:
                        os._exit(1)
            finally:
                for file in files:
                    os.close(file)


def _import(names: Sequence[str]) -> None:
    import importlib

    # Nobody steps through a job, and a kernel would import it for half a second.
    sys.modules.setdefault("debugpy", None)
    for name in names:
        importlib.import_module(name)


def _code() -> list[tuple]:
    """What changes when a module of this package is edited."""
    package = Path(__file__).parents[1]
    files = [path for path in package.glob("**/*") if path.is_file() and "__pycache__" not in path.parts]
    return sorted((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)


def _refusal(asked: dict, code: list[tuple]) -> str | None:
    """Why a job is not forked from this process, in a few words; None if it is."""
    own = {**os.environ, **asked["environment"]}
    ours = _OWN | {ADDRESS, "SQLIB_JOB", *KERNEL}
    differs = [name for name in own if os.environ.get(name) != asked["environment"].get(name) and name not in ours]
    if differs:
        return f"{differs[0]} is another than the fork server's"
    if _code() != code:
        return "the code was changed since the fork server was started"
    return why_not_forked(1)


def _receive(connection: socket.socket) -> tuple[dict, list[int]]:
    """(a request, its standard output and standard error)."""
    data, files, _, _ = socket.recv_fds(connection, 65536, 2)
    try:
        while data and not data.endswith(b"\n"):
            more = connection.recv(65536)
            data = data + more if more else b""
        return json.loads(data), list(files)  # ValueError if it was given up half-way
    except BaseException:
        for file in files:
            os.close(file)
        raise


def _become(asked: dict, files: list[int], connection: socket.socket) -> None:
    """What a fork does: the job of a request, from its first line to its end."""
    global _connection
    import random
    import tempfile
    import traceback

    import numpy

    _connection = connection
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN if asked["uninterrupted"] else signal.default_int_handler)
    for target, file in enumerate(files, start=1):
        os.dup2(file, target)
    os.environ.clear()
    os.environ.update(asked["environment"])
    os.umask(asked["umask"])
    tempfile.tempdir = None
    random.seed()  # what a process of its own takes from the system when it starts
    numpy.random.seed()
    code = 1
    try:
        call_itself(f"sqlib {asked['arguments'][0]}")
        os.chdir(asked["folder"])
        connection.sendall(f"{os.getpid()}\n".encode())
        _end_with(connection)
        sys.argv = [sys.argv[0], *asked["arguments"]]
        from sqlib.workflow.commands import main

        main()
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        # What it had to leave is on disk by now; to take down a process of this size takes a tenth of a second.
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):  # a full disk: what it did, and how it ended, stands
                stream.flush()
        with suppress(OSError):
            connection.sendall(bytes([code & 255]))
        os._exit(code & 255)


def _end_with(connection: socket.socket) -> None:
    """Have this process terminated when the other end of the connection is closed, on which nothing is said any more."""
    import fcntl

    def check(_number=None, _frame=None):
        try:
            connection.recv(1)
        except BlockingIOError:
            return
        except OSError:
            pass
        if signal.getsignal(signal.SIGTERM) == signal.SIG_IGN:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)

    connection.setblocking(False)
    signal.signal(signal.SIGIO, check)
    fcntl.fcntl(connection, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(connection, fcntl.F_SETFL, fcntl.fcntl(connection, fcntl.F_GETFL) | os.O_ASYNC)
    check()


# ---- a kernel --------------------------------------------------------------------------------------------------------


class ForkedKernel:
    """A fork of this process that waits to become the kernel of a notebook, meanwhile importing what notebooks import.

    It has what `jupyter_client` uses of a `subprocess.Popen`. It leads a process group, and ends with this process.
    """

    stdin = stdout = stderr = None

    def __init__(self, folder: str, environment: Mapping[str, str]):
        """It will work in `folder`; `environment` replaces that of this process."""
        self.returncode: int | None = None
        read, self._write = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        parent, self.pid = os.getpid(), os.fork()
        if self.pid:
            os.close(read)
            return
        try:
            os.close(self._write)
            self._wait_and_work(read, parent, folder, environment)
        finally:
            os._exit(1)

    @staticmethod
    def _wait_and_work(read: int, parent: int, folder: str, environment: Mapping[str, str]) -> None:
        import traceback

        die_with_parent(signal.SIGKILL, parent)
        os.setsid()
        call_itself("sqlib kernel")
        if _connection is not None:
            _connection.close()
        for number in (signal.SIGTERM, signal.SIGIO):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        try:
            _import(IN_NOTEBOOKS)
            with open(read, "rb") as pipe:
                arguments = json.loads(pipe.read() or b"null")
            if arguments is None:  # not needed after all
                os._exit(0)
            from ipykernel.kernelapp import IPKernelApp

            sys.argv = ["ipykernel_launcher", *arguments]
            IPKernelApp.launch_instance(argv=[*arguments, f"--IPKernelApp.parent_handle={parent}"])
            os._exit(0)
        except SystemExit as stop:
            os._exit(stop.code if isinstance(stop.code, int) else int(stop.code is not None))
        except BaseException:
            traceback.print_exc()

    def start(self, arguments: list[str]) -> None:
        """Make it the kernel that `python -m ipykernel_launcher ARGUMENT...` is."""
        with suppress(BrokenPipeError), open(self._write, "wb") as pipe:
            pipe.write(json.dumps(arguments).encode())

    def poll(self) -> int | None:
        """Its exit code; None while it runs."""
        if self.returncode is None:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:  # the system has cleared it away, as where SIGCHLD is ignored
                pid, status = self.pid, 0
            if pid:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, once it has ended."""
        import time

        until = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            if until is not None and time.monotonic() > until:
                raise TimeoutError(f"process {self.pid} still runs")
            time.sleep(0.01)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it."""
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask it to end."""
        self.send_signal(signal.SIGTERM)


# ---- its clients -----------------------------------------------------------------------------------------------------


def run_there(arguments: list[str]) -> int | None:
    """The exit code of a job of a study, made by the study's fork server; None where it has to be run in this process."""
    if not os.environ.get("SQLIB_JOB"):
        return None
    die_with_parent(signal.SIGTERM)
    address = os.environ.pop(ADDRESS, None)
    if address is None:
        return None
    asked = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
    asked["uninterrupted"] = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    os.umask(umask := os.umask(0o022))
    pid, signals = 0, []

    def pass_on(number, _frame):
        signals.append(number)
        if pid:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(6 * PATIENCE)  # it may still be importing, on a busy machine with cold disks
        try:
            connection.connect(address)
            request = json.dumps({**asked, "umask": umask}).encode() + b"\n"
            sent = socket.send_fds(connection, [request], [1, 2])
            if sent < len(request):  # to send nothing fails where the server has said no, and hung up
                connection.sendall(request[sent:])
            refused = json.loads(_line(connection))
        except (OSError, ValueError) as error:
            with suppress(OSError):
                if not isinstance(error, BlockingIOError):  # so many ask at once
                    os.unlink(address)  # no other job need wait for it
            refused = f"it does not answer ({type(error).__name__}: {error})"
        if refused is not None:
            return _not_forked(refused)
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
        for number, handler in before.items():
            if handler != signal.SIG_IGN:  # what is ignored from the start, as with nohup, stays ignored
                signal.signal(number, pass_on)
        try:
            connection.sendall(b"!")
            pid = int(_line(connection) or 0)
        except OSError:
            pid = 0
        if not pid:  # a fork that comes late ends before it has begun, as it cannot say its number
            connection.close()
            for number, handler in before.items():
                signal.signal(number, handler)
            for number in signals:
                os.kill(os.getpid(), number)
            return _not_forked("it could not fork (too many processes, or too little memory?)")
        for number in list(signals):
            pass_on(number, None)
        connection.settimeout(None)
        ended = connection.recv(1)
    if ended:
        return ended[0]
    if not signals:
        print("error: the process of this job was killed (out of memory?)", file=sys.stderr)
    return 128 + (signals or [signal.SIGKILL])[-1]


def _not_forked(why: str) -> None:
    print(f"not forked, in a process of its own: {why}", file=sys.stderr)


def _line(connection: socket.socket) -> bytes:
    """What comes up to the end of a line; b"" where the connection ends before."""
    line = b""
    while not line.endswith(b"\n"):
        if not (more := connection.recv(1)):
            return b""
        line += more
    return line
