"""YAML as parameter files are written: numbers are numbers, no key twice, and a mistake is one line."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from sqlib.checked import SqlibError, nearest, short
from sqlib.places import shown_path

LARGEST_YAML = 200_000
"""Bytes; the files of the project have a few thousand."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML with 1e-3 read as the number it is (YAML 1.1 takes it for text), a key given twice refused, and aliases, too.

    (Lists of aliases to lists of aliases ... make a value of terabytes from a file of a few lines.)
    """

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):
            raise yaml.composer.ComposerError(
                None, None, "aliases (*name) are not allowed", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):  # else the call below says what is wrong
                if key in seen:
                    raise yaml.constructor.ConstructorError(None, None, f"key '{key}' is given twice", node.start_mark)
                seen.add(key)
        return super().construct_mapping(node, deep)


_UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; raises SqlibError when there is none."""
    path = Path(path)
    shown = shown_path(path)
    try:
        if path.stat().st_size > LARGEST_YAML:
            raise SqlibError(f"{shown}: larger than {LARGEST_YAML // 1000} kB, so no file of parameters")
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except FileNotFoundError:
        known = sorted(p.stem for p in path.parent.glob("*.yaml"))
        raise SqlibError(f"{shown}: no such file{nearest(path.stem, known)}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SqlibError(f"{shown}: cannot be read: {error}") from None
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark or error.context_mark
        where = f"line {at.line + 1}, column {at.column + 1}: " if at else ""
        raise SqlibError(f"{shown}: not valid YAML: {where}{short(error.problem or error)}") from None
    except yaml.YAMLError as error:
        raise SqlibError(f"{shown}: not valid YAML: {short(error)}") from None
    # What PyYAML lets through: values that are not what their tag or look says (!!int "", 2026-99-99), deep nesting.
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise SqlibError(f"{shown}: not valid YAML: {short(error)}") from None
    if content is None:
        raise SqlibError(f"{shown}: holds nothing: expected 'key: value' lines")
    if not isinstance(content, dict):
        kind = {"list": "a list", "str": "text"}.get(type(content).__name__, type(content).__name__)
        raise SqlibError(f"{shown}: expected 'key: value' lines, found {kind}")
    return content
