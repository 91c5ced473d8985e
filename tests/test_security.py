"""Nothing runs code from a file, and nothing listens where others could reach it."""

import ast
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from planted import make

from sqlib.places import REPOSITORY
from sqlib.workflow import commands
from sqlib.workflow.notebooks import execute

SOURCES = [
    *sorted((REPOSITORY / "sqlib").rglob("*.py")),
    *sorted((REPOSITORY / "benchmarks").glob("*.py")),
    *sorted((REPOSITORY / "notebooks").glob("*.ipynb")),
]
# What makes code or objects of bytes or text.
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "code", "runpy", "pty"}
CALLS = {
    "eval", "exec", "compile", "__import__", "torch.load", "torch.jit.load", "numpy.load", "np.load", "pandas.read_pickle",
    "pd.read_pickle", "yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "os.system", "os.popen",
}  # fmt: skip
ALLOWED = {
    *(("fetch.py", "import pickle"), ("fetch.py", "pickle.loads")),
    *(("cells.py", "import pickle"), ("cells.py", "pickle.dumps"), ("cells.py", "pickle.loads")),
    ("cells.py", "eval"),  # of the expressions that stand in a notebook's own %%prose cells
}


def code_of(path: Path) -> str:
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(as_python(cell.source) for cell in cells if cell.cell_type == "code")


def as_python(cell: str) -> str:
    """A notebook's cell without magics; of a `%%prose` cell the expressions that are evaluated."""
    if not cell.startswith("%%prose"):
        return "\n".join(line for line in cell.split("\n") if not line.startswith("%"))
    line, _, text = cell.partition("\n")
    asked = re.search(r"\b(if|for) .*", line)
    return f'[rf"""{text}""" for _ in [0] {asked[0] if asked else ""}]'


def suspects(code: str) -> set[str]:
    """Imports and calls in Python code that may run what is in a file."""
    found = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found |= {f"import {name}" for name in names if name.split(".")[0] in MODULES}
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name in CALLS or name.split(".")[0] in MODULES:
                found.add(name)
            if any(word.arg == "shell" and ast.unparse(word.value) != "False" for word in node.keywords):
                found.add(f"{name}(shell=...)")
            if any(word.arg in ("allow_pickle", "weights_only") for word in node.keywords):
                found.add(f"{name}({', '.join(str(word.arg) for word in node.keywords)})")
    return found


def test_nothing_is_unpickled_or_evaluated_but_what_was_hashed_first():
    found = set()
    for path in SOURCES:
        found |= {(path.name, what) for what in suspects(code_of(path))}
    assert found == ALLOWED
    # Of the two pickles, the one with images: its SHA-256 is compared, and the function left if it differs, before it is read.
    source = code_of(REPOSITORY / "sqlib/data/fetch.py")
    assert source.count("pickle.loads(") == 1
    before = source[: source.index("pickle.loads(")]
    assert re.search(
        r"if hashlib\.sha256\(pickled\)\.hexdigest\(\) != pinned:\s+raise SourceFailed\([^\n]*\n[^\n]*$", before
    )
    # The other, a figure: only with a signature that this checkout alone can make (`test_notebook` tries others).
    source = code_of(REPOSITORY / "sqlib/report/cells.py")
    assert source.count("pickle.loads(") == 1
    before = source[: source.index("pickle.loads(")]
    assert re.search(
        r"if not hmac\.compare_digest\(hmac\.digest\(own_key\(\) or os\.urandom\(32\), content, [^\n]*\n\s+raise SqlibError",
        before,
    )
    assert 'YAML(typ="safe", pure=True)' in code_of(REPOSITORY / "sqlib/study/yaml.py")


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from joblib import load", "x = torch.load(f)", "eval('1')", "run(x, shell=True)",
     "np.load(f, allow_pickle=True)", "yaml.load(t)", "import dill as d"],
)  # fmt: skip
def test_the_scan_finds_what_it_is_for(code):
    assert suspects(code)


WHERE = """from pathlib import Path
import json, os, stat, sys
from ipykernel.connect import get_connection_file, get_connection_info
info = get_connection_info(unpack=True)
listening = []
if sys.platform == "linux":  # elsewhere nothing tells a process's own sockets
    descriptors = [path for path in Path("/proc/self/fd").iterdir() if path.exists()]
    inodes = {path.stat().st_ino for path in descriptors}
    tcp = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/self/net/{name}").read_text().splitlines()[1:]]
    listening = [row[1] for row in tcp if row[3] == "0A" and int(row[9]) in inodes]
place = os.stat(os.path.dirname(info["ip"]))
keys = {"transport": info["transport"], "key": len(info["key"]), "tcp": listening, "mode": stat.S_IMODE(place.st_mode)}
keys["file"] = stat.S_IMODE(os.stat(get_connection_file()).st_mode)
Path(out).write_text(json.dumps(keys))"""


def test_a_kernel_listens_on_sockets_that_only_its_user_reaches(tmp_path):
    notebook, out = make(tmp_path, WHERE), tmp_path / "where.json"
    execute(notebook, tmp_path / "done.ipynb", {"out": out}, 60, required=[out])
    found = json.loads(out.read_text())
    assert found["transport"] == "ipc" and found["key"] >= 16
    loopback = ("0100007F:", "00000000000000000000000001000000:")  # there the debugger of ipykernel listens
    assert all(address.startswith(loopback) for address in found["tcp"])
    assert found["mode"] & 0o077 == found["file"] & 0o077 == 0


def test_jupyterlab_listens_on_loopback_and_asks_for_a_token(tmp_path, monkeypatch):
    monkeypatch.setenv("JUPYTER_CONFIG_PATH", "")
    asked = []
    monkeypatch.setattr(os, "execv", lambda _, command: asked.append(" ".join(command)))
    commands.lab()
    (command,) = asked
    assert "jupyter lab" in command and not re.search(
        r"(?i)--(ip|ServerApp|NotebookApp|IdentityProvider|PasswordIdentity|allow|no-auth)|token|password", command
    )
    code = """
import socket
from jupyter_server.serverapp import ServerApp
app = ServerApp()
app.initialize([], new_httpserver=False)
kind = type(app.identity_provider).__name__
print(socket.gethostbyname(app.ip), app.allow_remote_access, len(app.identity_provider.token), app.identity_provider.auth_enabled)
"""
    none = {
        name: str(tmp_path)
        for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_CONFIG_PATH", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "HOME")
    }
    environment = {name: value for name, value in os.environ.items() if not name.startswith("JUPYTER")} | none
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    address, remote, token, asked = done.stdout.split()[-4:]
    assert socket.inet_aton(address)[0] == 127 and (remote, asked) == ("False", "True") and int(token) >= 32
