"""The processes below one, as Linux tells them: for tests that kill some."""

from pathlib import Path


def below(pid: int) -> list[int]:
    """Every process below this one, parents before children."""
    found = [pid]
    for parent in found:
        try:
            for task in Path(f"/proc/{parent}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
        except OSError:
            continue
    return found[1:]
