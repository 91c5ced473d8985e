"""Words for numbers: durations, counts, paths, and the errors that a log names."""

import os
import re
from pathlib import Path


def duration(seconds: float) -> str:
    """Such as '8 s', '1 min 12 s', '34 min', '2 h 05 min'."""
    seconds = max(0, round(seconds))
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 600:
        return f"{seconds // 60} min {seconds % 60:02} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def about(seconds: float) -> str:
    """A duration as rough as an estimate is: 'less than a minute', 'about 34 min', 'about 2 h 10 min'."""
    minutes = round(seconds / 60)
    if minutes >= 60:
        minutes = 10 * round(minutes / 10)
    return f"about {duration(60 * minutes) if minutes >= 60 else f'{minutes} min'}" if minutes else "less than a minute"


def logged(log: Path) -> str:
    """What a job's last attempt has said."""
    try:
        return log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "it left no log"


def logged_errors(log: Path) -> list[str]:
    """The errors in a job's log, a line each."""
    return re.findall(r"^error: (.*)$", logged(log), flags=re.MULTILINE)


# ---- words -------------------------------------------------------------------------------------------------------------
def shown(path: Path) -> str:
    """A path relative to the working folder where that is shorter."""
    short = os.path.relpath(path)
    return short if not short.startswith("../..") else str(path)


def count(number: int, noun: str) -> str:
    """'1 run', '2 runs'."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def training_title(training: str) -> str:
    """A training's name as readers write it, such as 'saliency-guided'."""
    return training.replace("_", "-")
