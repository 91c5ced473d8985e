"""The images that a network is trained on, as tensors: how they are split, and which of them are taken."""

from dataclasses import dataclass

import numpy as np
import torch

from sqlib.checked import SqlibError
from sqlib.hardware import constant

VALIDATION_COUNT = 5000
SPLIT_SEED = 0  # of the train/validation split: the same for every run, whatever the run's own seed


# ---- load and split ------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Dataset:
    """One data set in memory. Images are (N, 28, 28) uint8 tensors, labels (N,) int64 tensors with values 0..9.

    N is 55,000 for train, 5,000 for validation, 10,000 for test. `sha256` maps each file key (such as "train-images")
    to the SHA-256 of its uncompressed IDX file.
    """

    name: str
    title: str
    classes: tuple[str, ...]
    train_images: torch.Tensor
    train_labels: torch.Tensor
    validation_images: torch.Tensor
    validation_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    sha256: dict[str, str]


def split_indices(labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices (train, validation) into the 60,000 official training images, each ascending: 55,000 and 5,000.

    Validation takes 500 of each class, drawn with `SPLIT_SEED`: fixed once, independent of the seed of a run.
    """
    validation = stratified_indices(labels, VALIDATION_COUNT, SPLIT_SEED)
    in_train = torch.ones(len(labels), dtype=torch.bool)
    in_train[validation] = False
    return in_train.nonzero().flatten(), validation


def stratified_indices(labels: torch.Tensor, count: int, generator_seed: int = 0) -> torch.Tensor:
    """`count` indices into labels (N,), ascending, with equally many of each class (up to one, while a class lasts).

    Each element gets a random 64-bit key; the elements with the smallest keys of each class are taken. So a smaller
    subset with the same seed is part of a larger one. The keys are PCG64's raw output, which numpy keeps the same in
    all versions. Errors (SqlibError): count is not in 0..N.
    """
    if not 0 <= count <= len(labels):
        raise SqlibError(f"cannot take {count} of {len(labels)} images: choose a number from 0 to {len(labels)}")
    keys = np.random.PCG64(generator_seed).random_raw(len(labels))
    rank = np.empty(len(labels), dtype=np.int64)  # position of each element among those of its class, by key
    classes = labels.numpy()
    for value in np.unique(classes):
        members = np.flatnonzero(classes == value)
        rank[members[np.argsort(keys[members])]] = np.arange(len(members))
    return torch.from_numpy(np.sort(np.lexsort((keys, rank))[:count]))


def to_float(images: torch.Tensor) -> torch.Tensor:
    """Images (N, H, W) uint8 -> (N, 1, H, W) float32 in [0, 1]: pixel / 255. SqlibError for any other type or shape."""
    if images.dtype != torch.uint8 or images.ndim != 3:
        raise SqlibError(f"expected uint8 images of shape (N, H, W), got {images.dtype} of shape {tuple(images.shape)}")
    return images.unsqueeze(1).float() / constant(255, images.device)
