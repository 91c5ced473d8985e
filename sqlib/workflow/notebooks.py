"""Executing a notebook as a job, with papermill, in a kernel of this very interpreter.

papermill alone takes a killed kernel for a success, so a run counts only when no error came up *and* the files it owes
are there and new.
"""

import ast
import json
import logging
import os
import re
import shutil
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from sqlib.checked import SqlibError, nearest
from sqlib.files import to_json, write_atomically
from sqlib.places import REPOSITORY
from sqlib.workflow.forkserver import KERNEL, ForkedKernel, limits, why_not_forked
from sqlib.workflow.surroundings import short_folder


def execute(
    notebook: Path,
    output: Path,
    parameters: dict,
    timeout: float,
    required: Sequence[Path] = (),
    threads: int = 1,
) -> None:
    """Executes `notebook` with `parameters` in `timeout` seconds at most, and keeps the executed notebook at `output`.

    It runs in the notebook's own folder, on `threads` threads. Raises SqlibError (one line: the cell, its error, the
    file to look at) when a cell raises, the kernel dies, the time is up, or a file of `required` was not written.
    """
    import nbformat

    notebook, output, required = Path(notebook), Path(output), [Path(path) for path in required]
    plain = {name: os.fspath(value) if isinstance(value, os.PathLike) else value for name, value in parameters.items()}
    try:
        parameters = json.loads(to_json(plain))  # papermill would turn a tuple into a text
    except (TypeError, ValueError) as error:
        raise SqlibError(f"parameters: cannot be written as JSON: {error}") from None
    known = parameters_of(notebook)
    for name in parameters:
        if name not in known:
            raise SqlibError(f"{notebook.name}: unknown parameter '{name}'{nearest(name, known)}")
    before = {path: _stamp(path) for path in required}
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        scratch = Path(short_folder())
    except OSError as error:
        raise SqlibError(f"{notebook.name}: no kernel can be started: {error}") from None
    with _terminable(), ExitStack() as stack:
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        executed, error = _run(notebook, parameters, timeout, threads, scratch)
        missing = [str(path) for path in required if _stamp(path) in (None, before[path])]
        where = kept = ""
        if executed is not None:
            where, kept = _tidy(executed, error, notebook, output), f"; see {output}"
            write_atomically(output, (nbformat.writes(executed) + "\n").encode())
    if error is not None:
        message = " ".join(re.sub(r"\x1b\[[0-9;]*m", "", f"{error[0]}: {error[1]}").split())
        raise SqlibError(f"{notebook.name}: {where}{message}{kept}")
    if missing:
        raise SqlibError(f"{notebook.name}: ended without writing {', '.join(missing)}{kept}")


def _run(notebook: Path, parameters: dict, timeout: float, threads: int, scratch: Path):
    """(the executed notebook or None, (name, words) of what ended it or None), made in a temporary folder."""
    import nbformat

    partial = scratch / "executed.ipynb"
    folder, environment = notebook.resolve().parent, _kernel_environment(scratch, threads)
    forked = None
    if not why_not_forked(threads):
        # Forked before anything here has a thread, and before what only this side needs is imported.
        with suppress(OSError):  # too many processes, or too little memory: what a fresh kernel meets, too, it says
            forked = ForkedKernel(str(folder), environment)
    import papermill
    from papermill.exceptions import PapermillExecutionError

    manager, kernels = _kernel_manager(scratch, folder, environment, forked)
    timed_out, finished = threading.Event(), threading.Event()

    def stop_kernels():
        for kernel in kernels:
            kernel.kill_now()

    def time_is_up():
        timed_out.set()
        while not finished.wait(0.2):  # again and again: the kernel may just be starting
            stop_kernels()

    watchdog = threading.Timer(timeout, time_is_up)
    watchdog.daemon = True
    error = None
    try:
        watchdog.start()
        # Its last words about a dead kernel are said better by the SqlibError of `execute`.
        logging.getLogger("papermill").setLevel(logging.CRITICAL)
        papermill.execute_notebook(
            *(str(path).replace("{", "{{").replace("}", "}}") for path in (notebook, partial)),  # it formats them
            parameters,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            autosave_cell_every=0,
            kernel_manager_class=manager,
            shutdown_kernel="immediate",  # all it has to leave is written by now; farewells take most of a second
            # The in-memory history of IPython: two kernels must not meet in one history file.
            extra_arguments=["--HistoryManager.hist_file=:memory:", "--InteractiveShell.colors=nocolor"],
        )
    except PapermillExecutionError as raised:
        error = (raised.ename, raised.evalue)
    except Exception as raised:
        error = ("KernelDied", "the kernel died (out of memory? killed?)")
        if "died" not in str(raised).lower() and "dead" not in type(raised).__name__.lower():
            error = (type(raised).__name__, str(raised))
    finally:
        finished.set()
        watchdog.cancel()
        stop_kernels()
        if forked is not None:  # it waits in vain, where papermill did not come to it
            forked.kill()
    if timed_out.is_set():
        error = ("TimeLimit", f"stopped after {timeout:g} s, the time limit of this notebook")
    return nbformat.read(partial, as_version=4) if partial.exists() else None, error


def parameters_of(notebook: Path) -> list[str]:
    """The names that a notebook may be told: those of its cell tagged `parameters`. SqlibError for what is no notebook."""
    import nbformat

    try:
        cells = nbformat.read(notebook, as_version=4).cells
    except Exception as error:
        raise SqlibError(f"{notebook}: not a readable notebook: {' '.join(str(error).split())}") from None
    known = set()
    for cell in cells:
        if "parameters" in cell.metadata.get("tags", []):
            for node in ast.parse(cell.source).body:
                targets = getattr(node, "targets", [getattr(node, "target", None)])
                known |= {target.id for target in targets if isinstance(target, ast.Name)}
    return sorted(known)


def alone_with_its_gpu(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment, in which a GPU that is asked for by its number (`SQLIB_DEVICE=cuda:1`) is the only one there is.

    So it is the current device, too, on which CUDA graphs are captured.
    """
    found = re.fullmatch(r"cuda:(\d+)", environment.get("SQLIB_DEVICE", ""))
    if not found:
        return dict(environment)
    number, seen = int(found[1]), environment.get("CUDA_VISIBLE_DEVICES")
    names = [str(number)] if seen is None else seen.split(",")[number : number + 1]
    return {**environment, "CUDA_VISIBLE_DEVICES": names[0] if names else "", "SQLIB_DEVICE": "cuda"}


def _kernel_environment(scratch: Path, threads: int) -> dict[str, str]:
    """Of a kernel: so many threads for every library, no IPython profile of the user, sqlib found without installation."""
    path = [str(REPOSITORY), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **alone_with_its_gpu(os.environ),
        "SQLIB_UNWATCHED": "1",  # nobody sees what is drawn and replaced before the notebook has ended
        **limits(threads),
        **KERNEL,
        "IPYTHONDIR": str(scratch / "ipython"),
        "PYTHONPATH": os.pathsep.join(path),
    }


def _kernel_manager(scratch: Path, folder: Path, environment: dict[str, str], forked: ForkedKernel | None):
    """(a kernel manager class for one run, the list of its instances).

    Its kernel is the fork that waits, or else this interpreter whatever kernelspecs the user has; it talks over sockets in
    `scratch` (ipykernel warns of TCP), runs in `folder`, and ends by itself when this process does.
    """
    from jupyter_client.kernelspec import KernelSpec
    from jupyter_client.manager import AsyncKernelManager
    from traitlets import default

    kernels = []
    command = [sys.executable, "-Xfrozen_modules=off", "-m", "ipykernel_launcher", "-f", "{connection_file}"]

    class Manager(AsyncKernelManager):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self._kernel_spec = KernelSpec(argv=command, display_name="Python 3", language="python")
            kernels.append(self)

        @default("transport")
        def _transport(self):
            return "ipc"

        @default("connection_file")
        def _connection_file(self):
            return str(scratch / "kernel.json")

        async def _async_start_kernel(self, **kwargs):
            await super()._async_start_kernel(**{**kwargs, "cwd": str(folder), "env": environment})

        start_kernel = _async_start_kernel

        async def _async_launch_kernel(self, kernel_cmd, **kwargs):
            if forked is None:
                return await super()._async_launch_kernel(kernel_cmd, **kwargs)
            self.provisioner.process, self.provisioner.pid, self.provisioner.pgid = forked, forked.pid, forked.pid
            self._reconcile_connection_info(self.provisioner.connection_info)
            forked.start(kernel_cmd[len(command) - 2 :])

        def kill_now(self):
            process = getattr(self.provisioner, "process", None)
            if process is not None and process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # the kernel leads its process group

    return Manager, kernels


@contextmanager
def _terminable():
    """SIGTERM (how Snakemake and SLURM stop a job) ends the `with` block as an exception, so that it cleans up."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, _frame):
        raise SystemExit(128 + number)

    old = signal.getsignal(signal.SIGTERM)
    if old != signal.SIG_IGN:  # what is ignored from the start stays ignored
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


def _stamp(path: Path) -> tuple | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino, status.st_size


def _tidy(executed, error, notebook: Path, output: Path) -> str:
    """Takes papermill's markers and machine paths out of an executed notebook; puts `error` on the cell that ran last.

    Returns that cell's description ("cell 4 ('fit(run)'): "), or "" when no cell had started.
    """
    import nbformat

    executed.cells = [c for c in executed.cells if "papermill-error-cell-tag" not in c.metadata.get("tags", [])]
    record = executed.metadata.setdefault("papermill", {})
    record["input_path"], record["output_path"] = notebook.name, output.name
    record["exception"] = error is not None
    if error is None:
        return ""
    started = [
        (i, cell)
        for i, cell in enumerate(executed.cells)
        if cell.cell_type == "code" and cell.metadata.get("papermill", {}).get("start_time")
    ]
    failed = [(i, cell) for i, cell in started if any(o.output_type == "error" for o in cell.outputs)]
    if not started:
        return ""
    number, cell = (failed or started)[-1]
    if not failed:
        cell.outputs.append(
            nbformat.v4.new_output("error", ename=error[0], evalue=error[1], traceback=[": ".join(error)])
        )
    lines = [line for line in cell.source.splitlines() if line.strip() and not line.strip().startswith("#")]
    return f"cell {number + 1} ('{(lines or [''])[0].strip()[:60]}'): "
