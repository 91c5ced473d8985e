"""What a result depends on, as a digest: the parameters of its job, and the code that decides it.

No list of modules is kept. `sources_of` starts from a few functions, follows every name that they use through the package,
and hashes the definitions that it reaches. So what is moved to another module, or renamed in an import, changes nothing, and
what was forgotten in no list is there.
"""

import ast
import contextlib
import functools
import gc
import hashlib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlib.checked import SqlibError, digest
from sqlib.files import read_json
from sqlib.measures import family
from sqlib.places import REPOSITORY
from sqlib.study.parameters import Run

TRAIN = (
    "2_train.ipynb",
    "training.loop.fit",
    "study.jobs.train.measure_trained",
    "data.loading.load",
    "measures:clarity",
)
"""What a run's numbers start from. Its functions are named: what its notebook draws is drawn again without training."""
TRIAL = ("training.loop.fit", "data.loading.load")
"""What those of a sweep's trial start from. (Every other job has its own in `sqlib.workflow.pages`.)"""
TABLE = {("measures", "MEASURES"), ("measures", "family")}
"""What a job that computes a family of measures row by row does not depend on: titles and units of all the others."""
PLUMBING = {"checked", "data.fetch", "files", "places", "resources", "study.origin", "study.sources"}
"""Modules that decide no result: how files appear (data only if their sums are right), where they are, what errors say."""


def run_stamp(run: Run) -> dict[str, Any]:
    """What a run's numbers depend on: its parameters and the code of `TRAIN`."""
    return {"run": run.model_dump(mode="json"), "digest": digest(run), "sources": sources_of(TRAIN)}


@functools.cache
def sources_of(roots: tuple[str, ...]) -> str:
    """16 hexadecimal digits over the meaning of all code that a job depends on.

    roots: what it starts from: functions, notebooks (with all that they import, where no function is named), folders (every
    byte of their files), families of `MEASURES` (`measures:clarity`: functions and names of their rows). Comments, docstrings,
    formatting, imports, and where a definition stands do not count. Computed once in a process: what was imported does not
    change either. Raises SqlibError for a root that is not there.
    """
    collecting = gc.isenabled()
    gc.disable()  # trees are many small objects, none of them garbage: to look through them takes as long as to make them
    try:
        return digest(_parts_of(roots))
    finally:
        if collecting:
            gc.enable()


def _parts_of(roots: tuple[str, ...]) -> list[Any]:
    """All that the digest of `sources_of` is taken over."""
    parts: list[Any] = []
    functions = [root for root in roots if not ("/" in root or ":" in root or root.endswith(".ipynb"))]
    for name in roots:
        if name.endswith(".ipynb"):
            cells = _notebook(REPOSITORY / "notebooks" / name)
            parts.append([cell.meaning for cell in cells])
            if not functions:
                parts.append(closure(target for cell in cells for target in cell.targets))
        elif "/" in name:
            files = sorted(path for path in (REPOSITORY / "sqlib" / name).rglob("*") if path.is_file())
            parts += [(path.name, hashlib.sha256(path.read_bytes()).hexdigest()) for path in files]
    rows = [row for root in roots if ":" in root for row in family(root.split(":")[1])]
    functions += [f"measures.{row.function}" for row in rows]
    if functions:
        parts += [[row.name, row.per_image, row.needs] for row in rows]
        parts.append(closure((tuple(root.rsplit(".", 1)) for root in functions), TABLE if rows else set()))
    return parts


def closure(roots: Iterable[tuple[str, str]], without: Collection[tuple[str, str]] = ()) -> list[str]:
    """The meanings, sorted, of the definitions that `roots`, pairs of a module and a name, reach by name; themselves, too.

    without: definitions that do not count, nor what is reached through them alone.
    """
    found: dict[tuple[str, str], list[str]] = {}
    waiting = list(roots)
    for module, name in waiting:
        if name not in _module(module).definitions and name not in _module(module).imported:
            raise SqlibError(f"sqlib.{module} has no '{name}': sqlib/study/sources.py names it")
    while waiting:
        module, name = waiting.pop()
        if module in PLUMBING or (module, name) in found or (module, name) in without:
            continue
        definitions = _definitions(module, name)
        found[module, name] = [part.meaning for part in definitions]
        waiting += [target for part in definitions for target in part.targets]
        if not definitions and name in _module(module).imported:  # a name handed on
            waiting.append(_module(module).imported[name])
    return sorted(meaning for meanings in found.values() for meaning in meanings)


@dataclass
class _Part:
    """A definition, or a notebook's cell: what it means, and the (module, name) pairs of the package that it uses."""

    meaning: str
    targets: list[tuple[str, str]]


@dataclass
class _Module:
    """The top-level definitions of a module by name, and what its imports name: (module, name), or (module, "") itself."""

    definitions: dict[str, list[ast.stmt]] = field(default_factory=dict)
    imported: dict[str, tuple[str, str]] = field(default_factory=dict)


@functools.cache
def _module(name: str) -> _Module:
    path = REPOSITORY / "sqlib" / f"{name.replace('.', '/')}.py"
    path = path if path.exists() else path.with_suffix("") / "__init__.py"
    if not path.exists():
        raise SqlibError(f"there is no module sqlib.{name}: sqlib/study/sources.py names it")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    module = _Module(imported=_imported(tree))
    for node in tree.body:
        for each in _names(node):
            module.definitions.setdefault(each, []).append(node)
    return module


@functools.cache
def _definitions(module: str, name: str) -> list[_Part]:
    found = _module(module)
    return [_part(node, module, found.definitions.keys(), found.imported) for node in found.definitions.get(name, [])]


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]
    return []


def _imported(tree: ast.Module) -> dict[str, tuple[str, str]]:
    """What the imports of this package, wherever they stand in the code, bind: (module, name), or (module, "") a module."""
    found, statements = {}, [*tree.body]
    for node in statements:
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "sqlib":
            above = node.module.removeprefix("sqlib").removeprefix(".")
            for alias in node.names:
                path = REPOSITORY / "sqlib" / above.replace(".", "/") / alias.name
                is_module = path.is_dir() or path.with_suffix(".py").exists()
                whole = f"{above}.{alias.name}".removeprefix(".")
                found[alias.asname or alias.name] = (whole, "") if is_module else (above, alias.name)
        for inner in ("body", "handlers", "orelse", "finalbody", "cases"):
            statements += getattr(node, inner, [])
    return found


def _part(node: ast.AST, module: str, own: Collection[str], imported: dict[str, tuple[str, str]]) -> _Part:
    """A definition or a cell of `module`, whose own names and imports are given.

    Its meaning is canonical text without comments, docstrings, imports and formatting, the same on Python 3.11 to 3.13
    (`ast.dump` would do, but what it leaves out differs between those versions). Of an attribute of a module the name alone
    counts, and a name that is imported as another is called what it is.
    """
    targets = []

    def dump(node: Any) -> str:
        kind = type(node)
        if kind is list:
            return f"[{','.join([dump(part) for part in node if not _left_out(part)])}]"
        if not isinstance(node, ast.AST):
            return repr(node)
        if kind is ast.Name:
            target, name = imported.get(node.id, ("", ""))
            if name:
                targets.append((target, name))
            elif node.id in own:
                targets.append((module, node.id))
            return f"Name(id={name or node.id!r},ctx={type(node.ctx).__name__}())"
        if kind is ast.Attribute and type(node.value) is ast.Name:
            target, name = imported.get(node.value.id, ("", "-"))
            if not name:
                targets.append((target, node.attr))
                return f"Name(id={node.attr!r},ctx={type(node.ctx).__name__}())"
        fields = [(name, getattr(node, name, None)) for name in kind._fields]
        inner = [f"{name}={dump(value)}" for name, value in fields if value is not None and value != []]
        return f"{kind.__name__}({','.join(inner)})"

    return _Part(dump(node), targets)


def _left_out(node: Any) -> bool:
    """Whether a part of a list is an import, or a docstring (any text that stands for itself)."""
    if isinstance(node, ast.Expr):
        return isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    return isinstance(node, ast.Import | ast.ImportFrom)


def _notebook(path: Path) -> list[_Part]:
    """The cells of a notebook; of one that is not there, none."""
    cells = read_json(path).get("cells", []) if path.exists() else []
    sources = [(str(cell.get("cell_type")), "".join(cell.get("source", []))) for cell in cells]
    trees: dict[int, ast.Module] = {}
    for number, (kind, source) in enumerate(sources):
        if kind == "code":
            with contextlib.suppress(SyntaxError):  # a cell with a magic command counts as it is written
                trees[number] = ast.parse(source)
    imported: dict[str, tuple[str, str]] = {}
    for tree in trees.values():
        imported |= _imported(tree)
    return [
        _part(trees[number], "", set(), imported)
        if number in trees
        else _Part(f"{kind}:{source}", _words_of(source, imported) if kind == "code" else [])
        for number, (kind, source) in enumerate(sources)
    ]


def _words_of(source: str, imported: dict[str, tuple[str, str]]) -> list[tuple[str, str]]:
    """What a cell that is no Python may use: the imported names among its words, and what writes a `%%prose` cell."""
    found = [("report.cells", "load_ipython_extension")] if source.startswith("%%prose") else []
    for word, attribute in dict.fromkeys(re.findall(r"(\w+)(?:\.(\w+))?", source)):
        module, name = imported.get(word, ("", ""))
        if module and (name or attribute):
            found.append((module, name or attribute))
    return found
