"""`python -m sqlib.workflow.locked`: whether this interpreter has the study, and its packages as requirements.lock says.

Imports nothing that has to be installed: it is asked of an environment of which nothing is known.
"""

import importlib.metadata
import platform
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def differences(lock: str, project: str) -> list[str]:
    """What this environment has otherwise than the lock says, a few words each: the packages that the project names.

    lock: text of requirements.lock; project: of pyproject.toml. One that is not installed counts, one too many does not.
    """
    locked: dict[str, list[str]] = {}
    for name, version in re.findall(
        r"^([\w.-]+)==([^\s;\\]+)", lock, flags=re.M
    ):  # one for each Python, where they differ
        locked.setdefault(name, []).append(version.split("+")[0])
    dependencies = re.search(r"^dependencies = \[(.*?)^\]", project, flags=re.M | re.S)[1]
    found = []
    for name in re.findall(r'^\s*"([\w.-]+)', dependencies, flags=re.M):
        try:
            version = importlib.metadata.version(name).split("+")[0]
        except importlib.metadata.PackageNotFoundError:
            version = "missing"
        if version not in locked[name]:
            found.append(f"{name} {version} (locked: {' or '.join(locked[name])})")
    return found


def main() -> int:
    """0 and nothing said where all is as locked; else 1, and on standard error what is not."""
    found = differences((ROOT / "requirements.lock").read_text(), (ROOT / "pyproject.toml").read_text())
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        where = f"{sys.prefix} (Python {platform.python_version()})"
        print(f"{where} is not used: {', '.join(found[:3])}{more}; .venv is", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
