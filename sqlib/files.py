"""Files that appear whole or not at all."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sqlib.config import SqlibError

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
