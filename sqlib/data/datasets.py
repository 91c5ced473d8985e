"""Which data sets there are: a row each, with shape, classes, origin, licence and sums."""

import math
from dataclasses import dataclass
from pathlib import Path

from sqlib.checked import SqlibError, nearest
from sqlib.places import REPOSITORY, place

OFFICIAL_NAMES = {
    "train-images": "train-images-idx3-ubyte",
    "train-labels": "train-labels-idx1-ubyte",
    "t10k-images": "t10k-images-idx3-ubyte",
    "t10k-labels": "t10k-labels-idx1-ubyte",
}
SHAPES = {
    "train-images": (60000, 28, 28),
    "train-labels": (60000,),
    "t10k-images": (10000, 28, 28),
    "t10k-labels": (10000,),
}


# ---- what there is -------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Source:
    """One data set: names, origin, licence, and the SHA-256 of each uncompressed IDX file."""

    name: str
    title: str
    torchvision_class: str
    classes: tuple[str, ...]
    licence: str
    source: str
    sha256: dict[str, str]

    @property
    def mirrors(self) -> tuple[str, ...]:
        """Base URLs of torchvision's own mirrors, in torchvision's order, over TLS.

        The website of a bucket at Amazon answers without TLS only; the bucket itself has the same files with it.
        """
        from torchvision import datasets  # here, because this import takes a second and only a download needs it

        theirs = getattr(datasets, self.torchvision_class).mirrors
        return tuple(base.replace("http://", "https://").replace(".s3-website.", ".s3.") for base in theirs)


DATASETS = {
    "mnist": Source(
        name="mnist",
        title="MNIST",
        torchvision_class="MNIST",
        classes=("0", "1", "2", "3", "4", "5", "6", "7", "8", "9"),
        licence="CC BY-SA 3.0",
        source="Yann LeCun, Corinna Cortes, Christopher J. C. Burges: The MNIST database of handwritten digits",
        sha256={
            "train-images": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "train-labels": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "t10k-images": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "t10k-labels": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        },
    ),
    "fashion_mnist": Source(
        name="fashion_mnist",
        title="Fashion-MNIST",
        torchvision_class="FashionMNIST",
        classes=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        licence="MIT",
        source="Zalando Research (Han Xiao, Kashif Rasul, Roland Vollgraf): Fashion-MNIST, arXiv 1708.07747",
        sha256={
            "train-images": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "train-labels": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "t10k-images": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "t10k-labels": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        },
    ),
}
DATASET_NAMES = tuple(DATASETS)


def dataset_title(name: str) -> str:
    """A data set's name as its makers write it."""
    return DATASETS[name].title if name in DATASETS else name


def source_of(name: str) -> Source:
    """The entry of `DATASETS`; SqlibError with the nearest valid name if there is none."""
    if name in DATASETS:
        return DATASETS[name]
    raise SqlibError(f"unknown data set '{name}'{nearest(name, DATASETS)}")


def default_root() -> Path:
    """Folder of the data: `$SQLIB_DATA` if set, else `data/` beside the sqlib package."""
    return place("SQLIB_DATA", REPOSITORY / "data")


def idx_header(shape: tuple[int, ...]) -> bytes:
    """Header of an IDX file of unsigned bytes: 0, 0, type 8, number of dimensions, each size as big-endian uint32."""
    return bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)


def idx_bytes(key: str) -> int:
    """Length in bytes of one of the four official files."""
    return 4 + 4 * len(SHAPES[key]) + math.prod(SHAPES[key])
