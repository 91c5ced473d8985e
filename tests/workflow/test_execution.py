"""Real executions of tiny notebooks: what counts as success, what is said and kept otherwise."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from planted import make

from sqlib.checked import SqlibError
from sqlib.places import REPOSITORY
from sqlib.workflow import notebooks
from sqlib.workflow.notebooks import execute

WRITE = """from pathlib import Path
import json, os, sys
Path(out).write_text(json.dumps([x, sys.executable, dict(os.environ), os.getcwd()]))"""


def test_runs_in_this_interpreter_with_its_parameters(tmp_path, monkeypatch, capfd):
    spec = (
        tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    )  # a kernelspec of the user that points elsewhere
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": ["/nonexistent/python"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("SQLIB_DEVICE", "cuda:1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    notebook, out = make(tmp_path / "n", WRITE), tmp_path / "r.json"
    execute(notebook, tmp_path / "o" / "done.ipynb", {"x": (1, 2), "out": out}, 60, required=[out], threads=2)
    x, executable, environment, folder = json.loads(out.read_text())
    assert (x, executable) == ([1, 2], sys.executable)
    assert environment["OMP_NUM_THREADS"] == "2"
    assert (environment["SQLIB_DEVICE"], environment["CUDA_VISIBLE_DEVICES"]) == ("cuda", "1")
    assert environment["MPLBACKEND"] == "module://matplotlib_inline.backend_inline"
    assert Path(folder) == notebook.parent
    executed = nbformat.read(tmp_path / "o" / "done.ipynb", as_version=4)
    assert executed.metadata.papermill.exception is False
    assert [path.name for path in (tmp_path / "o").iterdir()] == ["done.ipynb"]
    assert capfd.readouterr() == ("", "")  # a normal run prints nothing, no warning either


FAILURES = {
    "raises": ("print('before')\n1/0", {}, 60, "ZeroDivisionError: division by zero"),
    "dies": ("import os; os._exit(3)", {}, 60, "the kernel died"),
    "slow": ("import time; time.sleep(60)", {}, 4, "stopped after 4 s"),
    "exits": ("raise SystemExit(2)", {}, 60, "SystemExit: 2"),
}


@pytest.mark.parametrize("case", FAILURES)
def test_failure_names_the_cell_and_keeps_the_notebook(tmp_path, case):
    source, parameters, limit, message = FAILURES[case]
    output = tmp_path / "o.ipynb"
    started = time.monotonic()
    with pytest.raises(SqlibError, match="cell 3") as error:
        execute(make(tmp_path / "n", "# a comment\ny = 1", source, "z = 1"), output, parameters, limit)
    assert time.monotonic() - started < 20
    text = str(error.value)
    assert message in text
    assert source.splitlines()[0] in text
    assert str(output) in text
    assert "\n" not in text
    cells = nbformat.read(output, as_version=4).cells
    assert "error" in [o.output_type for o in cells[2].outputs]
    assert not cells[3].outputs
    assert not any("papermill-error" in cell.source for cell in cells)


def test_success_needs_the_files_it_owes_and_new_ones(tmp_path):
    old = tmp_path / "old.json"
    old.write_text("{}")
    for required in (tmp_path / "never.json", old):
        with pytest.raises(SqlibError, match=f"without writing .*{required.name}"):
            execute(make(tmp_path / "n", "x"), tmp_path / "o.ipynb", {}, 60, required=[required])


def test_unknown_parameter_and_unreadable_notebook(tmp_path):
    with pytest.raises(SqlibError, match=r"unknown parameter 'outt'; did you mean 'out'\?"):
        execute(make(tmp_path / "n"), tmp_path / "o.ipynb", {"outt": 1}, 60)
    (tmp_path / "bad.ipynb").write_text("{")
    for name in ("bad.ipynb", "absent.ipynb"):
        with pytest.raises(SqlibError, match="not a readable notebook"):
            execute(tmp_path / name, tmp_path / "o.ipynb", {}, 60)
    with pytest.raises(SqlibError, match="parameters: cannot be written"):
        execute(make(tmp_path / "n"), tmp_path / "o.ipynb", {"x": object()}, 60)
    assert not (tmp_path / "o.ipynb").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_kernel_ends_with_the_process_that_started_it(tmp_path, number):
    out, scratch = tmp_path / "pid", tmp_path / "t"
    scratch.mkdir()
    source = "from pathlib import Path\nimport os, time\nPath(out).write_text(str(os.getpid()))\ntime.sleep(60)"
    notebook = make(tmp_path / "n", source)
    code = (
        "import sys; from pathlib import Path; from sqlib.workflow.notebooks import execute\n"
        "execute(Path(sys.argv[1]), Path(sys.argv[2]), {'out': sys.argv[3]}, 60)"
    )
    command = [sys.executable, "-c", code, str(notebook), str(tmp_path / "o.ipynb"), str(out)]
    environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONPATH": str(REPOSITORY)}
    parent = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: out.exists() and out.read_text(), 40)
    finally:
        parent.send_signal(number)
        parent.wait(20)
    wait_for(lambda: not alive(int(out.read_text())), 20)
    if number == signal.SIGTERM:
        assert list(scratch.iterdir()) == []


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def alive(pid: int) -> bool:
    try:
        # A process that has ended but that nobody has waited for is a zombie, and over.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_gpu_that_is_asked_for_is_the_only_one_a_notebook_sees():
    def seen(device, visible=None):
        given = {"PATH": "/bin", "SQLIB_DEVICE": device} | (
            {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
        )
        made = notebooks.alone_with_its_gpu(given)
        assert made["PATH"] == "/bin" and given["SQLIB_DEVICE"] == device
        return made["SQLIB_DEVICE"], made.get("CUDA_VISIBLE_DEVICES")

    assert seen("cpu") == ("cpu", None) and seen("cuda") == ("cuda", None) and seen("gpu", "3") == ("gpu", "3")
    assert seen("cuda:1") == ("cuda", "1") and seen("cuda:0") == ("cuda", "0")
    assert seen("cuda:1", "4,6,7") == ("cuda", "6") and seen("cuda:2", "GPU-a,GPU-b,GPU-c") == ("cuda", "GPU-c")
    assert seen("cuda:5", "4,6") == ("cuda", "")  # not there: then there is none, and `machine.device` says so
