"""Any picture that Pillow opens as the networks see images: 28 x 28 grey pixels, bright on black.

The order matters: the first frame, turned as a viewer shows it, in grey of 8 bits, on a ground where it is transparent, at
the networks' size, and inverted where it is dark on bright. What was done to a picture is said in its notes.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from sqlib.checked import SqlibError

if TYPE_CHECKING:  # Pillow is imported where a picture is read
    from PIL.Image import Image

SIDE = 28
LARGEST = 100_000_000
"""Pixels of a picture: what a telephone makes, and far less than what would fill the memory."""

# Blank: fewer than MARKS pixels are CONTRAST or more away from the median. Of the 130,000 training and test images here
# none has fewer than 22 such pixels.
MARKS, CONTRAST = 8, 32

BORDER = np.ones((SIDE, SIDE), bool)
BORDER[1:-1, 1:-1] = False


class Picture(NamedTuple):
    """An image as the networks see it, uint8 (28,28); whether it was inverted for that; what was done, a line each."""

    pixels: np.ndarray
    inverted: bool
    notes: tuple[str, ...]


def read_images(
    paths: Iterable[Path], invert: bool | None, refused: Callable[[SqlibError], None] | None
) -> Iterator[tuple[Path, Picture]]:
    """Each path with its picture, see `read_image`; `refused` is given the error of one that cannot be used.

    Without `refused` the first such error is raised.
    """
    for path in paths:
        try:
            picture = read_image(path, invert)
        except SqlibError as error:
            if refused is None:
                raise
            refused(error)
        else:
            yield Path(path), picture


def read_image(path: Path, invert: bool | None = None) -> Picture:
    """The picture in a file (PNG, JPEG, TIFF, ...) as the networks see images.

    invert: whether it is dark on bright. None: it is where its border is brighter than the middle of its range, which is so
    of none of the images of the data sets here. What is transparent is white if it is dark on bright, else black.

    Raises SqlibError, in one line, when the file is missing, not an image, damaged, too large or blank.
    """
    from PIL import Image, UnidentifiedImageError

    path, name, notes = Path(path), printable(str(path)), []
    if not path.is_file():
        raise SqlibError(f"{name}: no such file" if not path.exists() else f"{name}: not a file")
    too_large = f"too large: expected at most {LARGEST // 1_000_000} megapixels; make it smaller"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, about odd files: what matters is in the notes and errors
            with Image.open(path) as image:
                if image.width * image.height > LARGEST:
                    raise SqlibError(too_large)
                on_black, on_white = _on_grounds(*_grey(_upright(image, notes), notes))
    except UnidentifiedImageError:
        raise SqlibError(f"{name}: not an image that can be read (PNG or JPEG, for example)") from None
    except Image.DecompressionBombError:
        raise SqlibError(f"{name}: {too_large}") from None
    except SqlibError as error:
        raise SqlibError(f"{name}: {error}") from None
    except Exception as error:  # whatever Pillow's many parsers say of what is damaged
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SqlibError(f"{name}: damaged image: {printable(reason)[:200]}") from None

    if on_black.size != (SIDE, SIDE):
        notes.append(f"resized from {on_black.width} x {on_black.height} to {SIDE} x {SIDE} pixels")
    black, white = (_resized(ground) for ground in (on_black, on_white))
    inverted = _dark_on_bright(black, white) if invert is None else invert
    transparent = bool((black != white).any())
    if transparent:
        option = "--no-invert" if inverted else "--invert"
        notes.append(
            f"what is transparent is taken as {'white' if inverted else 'black'}"
            + (f", as the rest is {'dark' if inverted else 'bright'}; {option} if not" if invert is None else "")
        )
    pixels = 255 - white if inverted else black
    marks = int((np.abs(pixels.astype(int) - np.median(pixels)) >= CONTRAST).sum())
    if marks < MARKS:
        other = "--no-invert" if inverted else "--invert"
        raise SqlibError(
            f"{name}: blank, or nearly so: brightness {pixels.min()} to {pixels.max()} of 255, {marks} of {SIDE * SIDE} pixels"
            " stand out; expected a digit or a garment that does"
            + f" (its transparent parts were taken as {'white' if inverted else 'black'}; try {other})"
            * transparent
        )
    if inverted and invert is None:
        notes.append("dark on bright, so it was inverted (networks know bright on black); --no-invert if it is not")
    return Picture(pixels, inverted, tuple(f"{name}: {note}" for note in notes))


def printable(text: str) -> str:
    """The text on one line; a file's name may hold anything, also bytes that are not UTF-8."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _upright(image: "Image", notes: list[str]) -> "Image":
    """The first frame, turned as its EXIF data say; what Pillow leaves wrong of a PNG's transparent grey or colour is mended."""
    from PIL import ExifTags, ImageOps

    clear = image.info.get("transparency")
    if image.format == "PNG" and clear is not None:  # as it is in the file, where greys may have 2, 4 or 16 bits
        match image.tile[0].args, clear:
            case "L;2", int():
                image.info["transparency"] = 85 * clear
            case "L;4", int():
                image.info["transparency"] = 17 * clear
            case "RGB;16B", tuple():
                image.info["transparency"] = tuple(part >> 8 for part in clear)
    if getattr(image, "is_animated", False):
        notes.append("has several frames or pages: the first one is used")
    try:
        turn = image.getexif().get(ExifTags.Base.Orientation, 1)  # asked first: a TIFF is turned by loading it
    except Exception:  # whatever a parser says of data that are no EXIF data
        notes.append("its EXIF data are damaged and were ignored")
        return image
    if turn not in range(2, 9):
        return image
    notes.append(f"turned or mirrored, as its EXIF orientation {turn} says")
    return ImageOps.exif_transpose(image)


def _grey(image: "Image", notes: list[str]) -> tuple["Image", "Image | None"]:
    """Grey (mode L) and opacity (mode L, None: opaque) of an image of any mode; SqlibError for numbers of unknown range."""
    from PIL import Image

    clear = image.info.get("transparency")
    if image.mode == "F" or image.mode.startswith("I"):
        values = np.asarray(image)
        opacity = None if clear is None else Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8))
        return Image.fromarray(_eight_bits(values, notes)), opacity
    if image.mode == "LAB":
        return image.getchannel("L"), None
    if not image.has_transparency_data:
        return image.convert("L"), None
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    rgba = image.convert("RGBA")
    return rgba.convert("L"), rgba.getchannel("A")


def _eight_bits(values: np.ndarray, notes: list[str]) -> np.ndarray:
    """Greys of 16 bits (their high byte) or in float (0 to 1) as uint8; of either also those that only fill 0 to 255."""
    low, high = values.min(), values.max()
    if values.dtype.kind == "f":
        if low >= 0 and high <= 1:
            return np.rint(values * 255).astype(np.uint8)
        expected = "0 to 1 or 0 to 255"
    else:
        if 255 < high < 2**16 and low >= 0:
            return (values >> 8).astype(np.uint8)
        expected = "0 to 65535"
    if not (low >= 0 and high <= 255):  # NaN is neither
        raise SqlibError(f"its greys run from {low:g} to {high:g}, expected {expected}: save it as an 8-bit image")
    if high:
        notes.append(f"its greys of {values.dtype.itemsize * 8} bits run up to {high:g}: taken as 0 to 255")
    return np.rint(values).astype(np.uint8)


def _on_grounds(grey: "Image", opacity: "Image | None") -> tuple["Image", "Image"]:
    """The image on black and on white: the same where it is opaque."""
    from PIL import Image

    if opacity is None:
        return grey, grey
    return tuple(Image.composite(grey, Image.new("L", grey.size, ground), opacity) for ground in (0, 255))


def _resized(image: "Image") -> np.ndarray:
    from PIL import Image

    if image.size != (SIDE, SIDE):
        smaller = min(image.size) > SIDE
        image = image.resize((SIDE, SIDE), Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR)
    return np.array(image, dtype=np.uint8)


def _dark_on_bright(black: np.ndarray, white: np.ndarray) -> bool:
    """Whether an image that looks like this on black and on white is drawn dark on bright.

    Its border tells; where that is transparent, what is drawn: it stands on the ground that it differs from.
    """
    opacity = 255.0 - white + black
    if opacity[BORDER].mean() < 128:
        return bool(black.sum() < 0.5 * opacity.sum())
    low, high = int(black.min()), int(white.max())
    if (black != white).any():
        low, high = 0, 255  # the grounds are in these
    return bool(255 * black[BORDER].sum() / opacity[BORDER].sum() > (low + high) / 2)
