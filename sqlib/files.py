"""Files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlib.config import SqlibError


def write_atomically(path: Path, content: bytes, advice: str = "") -> None:
    """Put `content` at `path` (folders are made) whole and safe on disk, or leave what was there.

    Errors (SqlibError, `advice` at its end): the disk is full, the folder is read-only, ...
    """
    path = Path(path)
    part = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", suffix=".part", delete=False
        ) as file:
            part = Path(file.name)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.chmod(0o644)
        os.replace(part, path)
    except BaseException as error:
        if part is not None:
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error, advice) from None
        raise


def cannot_write(path: Path, error: OSError, advice: str = "") -> SqlibError:
    """One sentence about a folder or file that cannot be written, and what to do."""
    return SqlibError(f"cannot write {path}: {error.strerror or error}{f'. {advice}' if advice else ''}")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """What goes wrong while a file's content is looked at that is not as expected, as a SqlibError that names the file."""
    try:
        yield
    except (LookupError, TypeError, AttributeError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise SqlibError(
            f"{path}: damaged: not the content expected there ({type(error).__name__}: {reason})"
        ) from None
