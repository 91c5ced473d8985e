"""YAML 1.2, as parameter files are written: 1e-3 is a number and `yes` is text, no key twice, and a mistake is one line."""

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.composer import Composer, ComposerError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import AliasEvent

from sqlib.checked import SqlibError, nearest, short
from sqlib.places import shown_path

LARGEST_YAML = 200_000
"""Bytes; the files of the project have a few thousand."""


class _WithoutAliases(Composer):
    """Lists of aliases to lists of aliases ... make a value of terabytes from a file of a few lines: there are none here."""

    def compose_node(self, parent, index):
        if self.parser.check_event(AliasEvent):
            raise ComposerError(None, None, "aliases (*name) are not allowed", self.parser.peek_event().start_mark)
        return super().compose_node(parent, index)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises SqlibError when there is none."""
    path = Path(path)
    shown = shown_path(path)
    try:
        if path.stat().st_size > LARGEST_YAML:
            raise SqlibError(f"{shown}: larger than {LARGEST_YAML // 1000} kB, so no file of parameters")
        reader = YAML(typ="safe", pure=True)
        reader.Composer = _WithoutAliases
        content = reader.load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise SqlibError(f"{shown}: no such file{nearest(path.stem, known)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SqlibError(f"{shown}: cannot be read: {error}") from None
    except MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        where = f"line {at.line + 1}, column {at.column + 1}: " if at else ""
        problem = re.sub(
            r'found duplicate key "(.*)" with value.*',
            r"key '\1' is given twice",
            str(error.problem or error),
            flags=re.S,
        )
        raise SqlibError(f"{shown}: not valid YAML: {where}{short(problem)}") from None
    except YAMLError as error:
        raise SqlibError(f"{shown}: not valid YAML: {short(error)}") from None
    # What it lets through: values that are not what their tag or look says (!!int "", 2026-99-99, "\UFFFFFFFF"), deep nesting.
    except (ValueError, LookupError, OverflowError, AttributeError, TypeError, RecursionError) as error:
        raise SqlibError(f"{shown}: not valid YAML: {short(error)}") from None
    if content is None:
        raise SqlibError(f"{shown}: holds nothing: expected 'key: value' lines")
    if not isinstance(content, dict):
        kind = {"list": "a list", "str": "text"}.get(type(content).__name__, type(content).__name__)
        raise SqlibError(f"{shown}: expected 'key: value' lines, found {kind}")
    return content
