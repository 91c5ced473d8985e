"""Files that appear whole or not at all, and JSON."""

import errno
import json
import math
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sqlib.checked import SqlibError

# What a file system answers that cannot do what it is asked for, whatever the file: some network and FUSE mounts.
UNKNOWN_THERE = {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}


def write_atomically(path: Path, content: bytes, advice: str = "") -> None:
    """Put `content` at `path` (folders are made) whole and safe on disk, or leave what was there.

    The mode (readable by everyone) is a wish: Windows folders in WSL, CIFS and others refuse to change it.
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
            try:
                os.fsync(file.fileno())
            except OSError as error:
                if error.errno not in UNKNOWN_THERE:
                    raise
        wish_mode(part, 0o644)
        os.replace(part, path)
    except BaseException as error:
        if part is not None:
            part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise cannot_write(path, error, advice) from None
        raise


def wish_mode(path: Path, mode: int) -> None:
    """Set the mode of a file or folder where the file system lets us; elsewhere it stays what the mount gives it."""
    with suppress(OSError):
        os.chmod(path, mode)


def touch(path: Path, at: int | None = None) -> None:
    """Give a file the modification time `at`, in nanoseconds (None: now).

    Only a file's owner may choose a time, and some file systems set none: then it gets the time of now, by being written
    again if need be. SqlibError if that cannot be done either.
    """
    try:
        os.utime(path, **({} if at is None else {"ns": (at, at)}))
    except FileNotFoundError:
        raise
    except OSError:
        try:
            os.utime(path)
        except OSError as error:
            try:
                content = Path(path).read_bytes()
            except OSError:
                raise cannot_write(path, error) from None
            write_atomically(path, content)


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


# ---- JSON ------------------------------------------------------------------------------------------------------------
def to_json(value: Any) -> bytes:
    """JSON of `value`, indented, with NaN and infinity (which JSON does not have) as null."""
    return (json.dumps(_finite(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    if hasattr(value, "item"):  # a number of numpy or torch
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; SqlibError if it is missing, unreadable or not an object."""
    try:
        content = json.loads(Path(path).read_bytes(), parse_constant=_no_number)
    except FileNotFoundError:
        raise SqlibError(f"{path}: no such file") from None
    except OSError as error:
        raise SqlibError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise SqlibError(f"{path}: damaged, not valid JSON ({error})") from None
    if not isinstance(content, dict):
        raise SqlibError(f"{path}: damaged, expected an object, found {type(content).__name__}")
    return content
