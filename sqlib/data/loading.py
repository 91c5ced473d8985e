"""Data sets read from their IDX files into one `Dataset` of tensors."""

import math
import os
from collections.abc import Callable
from pathlib import Path

import torch

from sqlib.checked import SqlibError
from sqlib.data.datasets import OFFICIAL_NAMES, source_of
from sqlib.data.fetch import fetch
from sqlib.training.examples import Dataset, split_indices


def read_idx(path: str | Path) -> torch.Tensor:
    """Read an uncompressed IDX file of unsigned bytes (1 to 4 dimensions) as a uint8 tensor of the shape it states.

    Errors (SqlibError): the file cannot be read, is of another type, or is not exactly as long as its header says;
    found before any memory for the content is taken.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            length = os.fstat(file.fileno()).st_size
            magic = file.read(4)
            if len(magic) < 4 or magic[:3] != b"\0\0\x08" or not 1 <= magic[3] <= 4:
                raise SqlibError(
                    f"{path} is no IDX file of unsigned bytes: it starts with 0x{magic.hex()}, not 0x000008 and 1..4"
                )
            header = file.read(4 * magic[3])
            shape = [int.from_bytes(header[at : at + 4], "big") for at in range(0, len(header), 4)]
            if len(header) < 4 * magic[3] or 0 in shape:
                raise SqlibError(f"{path} is not a valid IDX file: its header ends early or states an empty dimension")
            expected = 4 + len(header) + math.prod(shape)
            if length != expected:
                raise SqlibError(f"{path} is damaged: {length:,} bytes long, its header says {expected:,}")
            content = bytearray(file.read(expected - 4 - len(header)))
    except OSError as error:
        raise SqlibError(f"cannot read {path}: {error.strerror}") from None
    if len(content) != math.prod(shape):
        raise SqlibError(f"{path} became shorter while it was read; run again")
    return torch.frombuffer(content, dtype=torch.uint8).reshape(shape)


def load(name: str, root: str | Path | None = None, log: Callable[[str], None] = print) -> Dataset:
    """Load a data set, fetching it first if a file is missing or fails its check (every call checks all SHA-256 sums).

    name: a key of `DATASETS`. root: folder that holds `<name>/`, by default `default_root()`. Errors: see `fetch`.
    """
    spec = source_of(name)
    folder = fetch(name, root, log)
    images, labels, test_images, test_labels = (read_idx(folder / f"{key}.idx") for key in OFFICIAL_NAMES)
    labels, test_labels = labels.long(), test_labels.long()
    train, validation = split_indices(labels)
    return Dataset(
        name=name,
        title=spec.title,
        classes=spec.classes,
        train_images=images[train],
        train_labels=labels[train],
        validation_images=images[validation],
        validation_labels=labels[validation],
        test_images=test_images,
        test_labels=test_labels,
        sha256=dict(spec.sha256),
    )
