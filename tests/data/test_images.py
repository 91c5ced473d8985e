"""Pictures of every kind become what the networks know, and say what was done; what shows nothing is refused by name."""

import io
import struct
import tempfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from sqlib.checked import SqlibError
from sqlib.data import loading
from sqlib.data.images import LARGEST, read_image, read_images

MANY = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

# What a viewer shows of stored rows and columns, by EXIF orientation.
SHOWN = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: np.swapaxes(a, 0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.swapaxes(np.rot90(a, 2), 0, 1),
    8: lambda a: np.rot90(a, 1),
}


def framed(inside):
    """Pixels (28,28) with a black border around (20,20) ones."""
    pixels = np.zeros((28, 28), np.uint8)
    pixels[4:24, 4:24] = inside
    pixels[10:14, 8:16] |= 0x80  # never blank
    return pixels


drawings = arrays(np.uint8, (20, 20)).map(framed)


def read(image, invert=None, kind="png", **options):
    """(pixels, notes without the file's name, picture) of an image saved and read again; of bytes, as they are."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"picture.{kind}"
        if isinstance(image, bytes):
            path.write_bytes(image)
        else:
            image.save(path, **options)
        picture = read_image(path, invert)
    assert picture.pixels.dtype == np.uint8 and picture.pixels.shape == (28, 28)
    assert all(note.startswith(f"{path}: ") and "\n" not in note for note in picture.notes)
    return picture.pixels, " | ".join(note.removeprefix(f"{path}: ") for note in picture.notes), picture


def refusal(image, invert=None, **options):
    """The one line that says why an image is refused."""
    with pytest.raises(SqlibError) as caught:
        read(image, invert, **options)
    assert "\n" not in str(caught.value) and "picture." in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def digit():
    return loading.load("mnist").test_images[0].numpy()


# ---- what the networks know already --------------------------------------------------------------------------------


@MANY
@given(drawings)
def test_grey_bright_on_black_is_read_bit_for_bit_and_without_a_word(pixels):
    found, notes, picture = read(Image.fromarray(pixels))
    np.testing.assert_array_equal(found, pixels)
    assert (notes, picture.inverted) == ("", False)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_no_image_of_the_data_sets_is_changed_and_each_negative_is_inverted(name):
    for pixels in loading.load(name).test_images[:300].numpy():
        np.testing.assert_array_equal(read(Image.fromarray(pixels))[0], pixels)
        found, notes, picture = read(Image.fromarray(255 - pixels))
        np.testing.assert_array_equal(found, pixels)
        assert picture.inverted and "inverted" in notes and "--no-invert" in notes


@MANY
@given(drawings, st.booleans(), st.sampled_from([None, True, False]))
def test_the_option_decides_and_without_it_the_border(pixels, dark, invert):
    drawn = 255 - pixels if dark else pixels
    found, notes, picture = read(Image.fromarray(drawn), invert)
    assert picture.inverted == (dark if invert is None else invert)
    np.testing.assert_array_equal(found, 255 - drawn if picture.inverted else drawn)
    assert ("--no-invert" in notes) == (dark and invert is None)


# ---- orientation ---------------------------------------------------------------------------------------------------


@MANY
@given(drawings, st.sampled_from(sorted(SHOWN)), st.sampled_from(["png", "tiff", "webp", "jpg", "mpo"]), st.booleans())
def test_a_picture_is_read_as_a_viewer_shows_it(pixels, orientation, kind, oblong):
    stored = np.repeat(np.repeat(pixels, 2, axis=0), 4 if oblong else 2, axis=1)
    if kind in ("jpg", "mpo", "webp"):
        stored = np.repeat(np.repeat(np.where(stored > 127, 255, 0).astype(np.uint8), 4, axis=0), 4, axis=1)
    shown = SHOWN[orientation](stored)
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossy = {"jpg": {"quality": 100}, "mpo": {"quality": 100}, "webp": {"lossless": True}}.get(kind, {})
    image = Image.fromarray(stored).convert("RGB")
    found, notes, _ = read(image, kind=kind, exif=exif, **lossy)
    expected, _, _ = read(Image.fromarray(np.ascontiguousarray(shown)))
    np.testing.assert_allclose(found.astype(int), expected, atol=0 if kind in ("png", "tiff", "webp") else 4)
    assert (f"orientation {orientation}" in notes) == (orientation != 1)
    assert f"resized from {shown.shape[1]} x {shown.shape[0]}" in notes


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I;16", "I;16B", "I", "F", "CMYK", "LAB"])
def test_every_mode_is_turned(digit, mode):
    drawn = np.where(digit > 127, 255, 0).astype(np.uint8)
    if mode in OPAQUE_OF:
        image, kind = OPAQUE[OPAQUE_OF[mode]][0](drawn), OPAQUE[OPAQUE_OF[mode]][1]
    else:
        image, kind = Image.fromarray(drawn).convert(mode), "png"
    for orientation in range(2, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for suffix in {kind, "tiff"}:
            found, notes, _ = read(image, kind=suffix, exif=exif)
            np.testing.assert_array_equal(found, SHOWN[orientation](drawn))
            assert f"orientation {orientation}" in notes


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_none(digit, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    found, notes, _ = read(Image.fromarray(digit), exif=exif)
    np.testing.assert_array_equal(found, digit)
    assert notes == ""


def test_damaged_exif_data_lose_no_picture(digit):
    found, notes, _ = read(Image.fromarray(digit), exif=b"Exif\x00\x00neither II nor MM")
    np.testing.assert_array_equal(found, digit)
    assert "EXIF data are damaged" in notes


# ---- modes ---------------------------------------------------------------------------------------------------------


def palette(pixels):
    """The same picture in mode P with its palette upside down."""
    image = Image.fromarray(255 - pixels).convert("P")
    image.putpalette([value for grey in range(255, -1, -1) for value in (grey, grey, grey)])
    return image


OPAQUE = {
    "L": (Image.fromarray, "png"),
    "RGB": (lambda p: Image.fromarray(p).convert("RGB"), "png"),
    "P": (palette, "png"),
    "P in a GIF": (palette, "gif"),
    "RGBA": (lambda p: Image.fromarray(p).convert("RGBA"), "png"),
    "LA": (lambda p: Image.fromarray(p).convert("LA"), "png"),
    "16 bits, PNG": (lambda p: Image.fromarray(p.astype(np.uint16) * 257), "png"),
    "16 bits, TIFF": (lambda p: Image.fromarray(p.astype(np.uint16) * 257), "tiff"),
    "16 bits, big-endian": (
        lambda p: Image.frombytes("I;16B", (28, 28), (p.astype(">u2") * 257).astype(">u2").tobytes()), "tiff"),
    "32 bits": (lambda p: Image.fromarray(p.astype(np.int32) * 257), "tiff"),
    "32 bits, up to 255": (lambda p: Image.fromarray(p.astype(np.int32)), "tiff"),
    "float": (lambda p: Image.fromarray((p / 255).astype(np.float32)), "tiff"),
    "float, up to 255": (lambda p: Image.fromarray(p.astype(np.float32)), "tiff"),
    "CMYK": (lambda p: Image.fromarray(p).convert("RGB").convert("CMYK"), "tiff"),
    "LAB": (lambda p: Image.merge("LAB", [Image.fromarray(p), *[Image.new("L", (28, 28), 128)] * 2]), "tiff"),
    "BMP": (Image.fromarray, "bmp"),
    "PGM": (Image.fromarray, "pgm"),
}  # fmt: skip


OPAQUE_OF = {
    "P": "P",
    "I;16": "16 bits, PNG",
    "I;16B": "16 bits, big-endian",
    "I": "32 bits",
    "F": "float",
    "CMYK": "CMYK",
    "LAB": "LAB",
}


@pytest.mark.parametrize("mode", OPAQUE)
def test_every_mode_gives_the_same_pixels(mode):
    make, kind = OPAQUE[mode]

    @MANY
    @given(drawings)
    def check(pixels):
        found, notes, _ = read(make(pixels), kind=kind)
        np.testing.assert_array_equal(found, pixels)
        assert ("taken as 0 to 255" in notes) == mode.endswith("up to 255")

    check()


@MANY
@given(arrays(np.bool_, (20, 20)))
def test_one_bit(inside):
    pixels = framed(np.where(inside, 255, 0)) // 128 * 255
    for drawn in (pixels, 255 - pixels):
        np.testing.assert_array_equal(read(Image.fromarray(drawn).convert("1"))[0], pixels)


@pytest.mark.parametrize(
    "values", [np.float32([-0.5, 0.7]), np.float32([0, 300]), np.float32([0, np.nan]), np.float32([0, np.inf]),
               np.int32([0, 70_000]), np.int32([-1, 200])],
)  # fmt: skip
def test_numbers_whose_white_is_not_known_are_refused(values):
    image = np.full((28, 28), values[0])
    image[8:20, 8:20] = values[1]
    assert "expected 0 to" in refusal(Image.fromarray(image), kind="tiff")


def test_the_first_frame_of_several_is_read_and_it_is_said(digit):
    first, other = Image.fromarray(digit), Image.fromarray(digit[::-1].copy())
    for kind in ("gif", "png", "tiff", "webp"):
        more = {"lossless": True} if kind == "webp" else {}
        found, notes, _ = read(first, kind=kind, save_all=True, append_images=[other], **more)
        np.testing.assert_array_equal(found, digit)
        assert "the first one is used" in notes


# ---- transparency --------------------------------------------------------------------------------------------------


def ink(opacity, grey):
    """A drawing in one grey on nothing."""
    colour = np.full((28, 28), grey, np.uint8)
    return Image.fromarray(np.stack([colour, colour, colour, opacity], axis=-1))


@MANY
@given(drawings, st.sampled_from([0, 255]), st.sampled_from(["RGBA", "LA", "resaved"]))
def test_a_drawing_on_nothing_stands_on_the_ground_it_differs_from(pixels, grey, mode):
    image = ink(pixels, grey)
    if mode != "resaved":
        image = image.convert(mode)
    found, notes, picture = read(image, kind="png" if mode != "resaved" else "tiff")
    np.testing.assert_array_equal(found, pixels)
    assert picture.inverted == (grey == 0)
    assert f"taken as {'white' if grey == 0 else 'black'}" in notes
    np.testing.assert_array_equal(read(image, grey == 0)[0], pixels)
    said = refusal(image, grey != 0)
    assert "blank" in said and ("--invert" in said or "--no-invert" in said)


def test_a_transparent_hole_in_an_opaque_picture_takes_the_ground_of_its_border(digit):
    paper = np.where(digit > 127, 0, 255).astype(np.uint8)
    opacity = np.full((28, 28), 255, np.uint8)
    opacity[:2, :2] = 0  # a rounded corner of a scan
    found, _, picture = read(Image.merge("LA", [Image.fromarray(paper), Image.fromarray(opacity)]))
    np.testing.assert_array_equal(found, 255 - paper)
    assert picture.inverted


def with_transparent(image, chunk):
    """The PNG of an image with a tRNS chunk of these bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "png")
    return put_trns(buffer.getvalue(), chunk)


def put_trns(content, chunk):
    at = content.index(b"IDAT") - 4
    part = b"tRNS" + chunk
    return content[:at] + struct.pack(">I", len(chunk)) + part + struct.pack(">I", zlib.crc32(part)) + content[at:]


def raw_png(rows, depth, colour_type):
    """A PNG of 28 x 28 pixels from the bytes of its rows."""

    def part(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", 28, 28, depth, colour_type, 0, 0, 0)
    lines = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", lines) + part(b"IEND", b"")


@pytest.mark.parametrize("kind", ["1", "L;2", "L;4", "L", "I;16", "RGB", "RGB;16", "P"])
def test_one_value_that_is_transparent(digit, kind):
    """A black digit, on a ground of a grey that is transparent: white, were it taken as black."""
    drawn = digit > 127
    if kind in ("L;2", "L;4"):
        depth = int(kind[-1])
        values = np.where(drawn, 0, 1).astype(np.uint8)
        bits = np.unpackbits(values[..., None], axis=-1)[..., -depth:].reshape(28, -1)
        content = put_trns(raw_png([row.tobytes() for row in np.packbits(bits, axis=1)], depth, 0), b"\0\1")
    elif kind == "RGB;16":
        values = np.where(drawn, 0, 0x4321).astype(">u2")
        content = put_trns(
            raw_png([row.tobytes() for row in np.repeat(values[..., None], 3, axis=2)], 16, 2), b"\x43\x21" * 3
        )
    elif kind == "P":
        content = with_transparent(Image.fromarray(np.where(drawn, 0, 60).astype(np.uint8)).convert("P"),
                                   b"\xff" * 60 + b"\0")  # fmt: skip
    else:
        grey = {"1": 1, "I;16": 0x4321}.get(kind, 60)
        values = np.where(drawn, 0, grey)
        image = {
            "1": lambda: Image.fromarray(values.astype(bool)),
            "I;16": lambda: Image.fromarray(values.astype(np.uint16)),
            "L": lambda: Image.fromarray(values.astype(np.uint8)),
            "RGB": lambda: Image.fromarray(values.astype(np.uint8)).convert("RGB"),
        }[kind]()
        content = with_transparent(image, struct.pack(">H", grey) * (3 if kind == "RGB" else 1))
    found, notes, picture = read(content)
    np.testing.assert_array_equal(found, np.where(drawn, 255, 0))
    assert picture.inverted and "transparent is taken as white" in notes


# ---- size, blank, damaged ------------------------------------------------------------------------------------------


def test_another_size_is_resized_and_it_is_said(digit):
    found, notes, _ = read(Image.fromarray(digit).resize((56, 56), Image.Resampling.NEAREST))
    np.testing.assert_array_equal(found, digit)
    assert notes == "resized from 56 x 56 to 28 x 28 pixels"


@MANY
@given(
    st.integers(0, 255), st.integers(0, 20), st.integers(0, 7), st.sampled_from(["L", "RGB", "LA"]),
    st.sampled_from([None, True, False]), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_blank_paper_with_noise_and_dust_is_refused(paper, noise, dust, mode, invert, seed):
    random = np.random.default_rng(seed)
    pixels = np.clip(paper + random.integers(-(noise // 2), noise // 2 + 1, (28, 28)), 0, 255).astype(np.uint8)
    pixels.flat[random.integers(0, 784, dust)] = 255 - paper
    assert "blank, or nearly so" in refusal(Image.fromarray(pixels).convert(mode), invert)


def test_what_is_transparent_everywhere_is_blank(digit):
    assert "blank" in refusal(ink(np.zeros_like(digit), 0))


def test_a_header_that_states_a_huge_picture_is_refused_unread():
    for width, height in ((LARGEST // 10_000 + 1, 10_000), (60_000, 60_000), (2**31 - 1, 2**31 - 1)):
        content = bytearray(raw_png([bytes(28)] * 28, 8, 0))
        content[16:24] = struct.pack(">II", width, height)
        content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
        assert "too large" in refusal(bytes(content))


@pytest.mark.parametrize(
    ("name", "words"),
    [("text.png", "not an image"), ("empty.png", "not an image"), ("cut.png", "damaged image"),
     ("cut.jpg", "damaged image"), ("cut.gif", "damaged image"), ("none.png", "no such file"), (".", "not a file")],
)  # fmt: skip
def test_what_is_no_picture_is_one_line_that_names_it(tmp_path, digit, name, words):
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "empty.png").write_bytes(b"")
    for kind in ("png", "jpg", "gif"):
        Image.fromarray(digit).resize((280, 280)).save(tmp_path / f"whole.{kind}")
        content = (tmp_path / f"whole.{kind}").read_bytes()
        (tmp_path / f"cut.{kind}").write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(SqlibError, match=words) as caught:
        read_image(tmp_path / name)
    assert "\n" not in str(caught.value) and str(tmp_path / name) in str(caught.value)


def test_a_name_that_cannot_be_printed_stays_on_its_line(tmp_path):
    with pytest.raises(SqlibError) as caught:
        read_image(tmp_path / "a\nb\x1b[31m\udcff.png")
    assert str(caught.value).isprintable() and "no such file" in str(caught.value)


def test_images_behind_a_bad_one_are_read(tmp_path, digit):
    Image.fromarray(digit).save(tmp_path / "good.png")
    paths, errors = [tmp_path / name for name in ("none.png", "good.png", "gone.png", "good.png")], []
    assert [path.name for path, _ in read_images(paths, None, errors.append)] == ["good.png", "good.png"]
    assert [str(error) for error in errors] == [f"{tmp_path}/{name}: no such file" for name in ("none.png", "gone.png")]
    with pytest.raises(SqlibError, match=r"none\.png"):
        list(read_images(paths, None, None))


@MANY
@given(
    st.sampled_from(["1", "L", "P", "RGB", "RGBA", "LA", "CMYK", "YCbCr", "LAB", "I", "I;16", "F"]),
    st.integers(1, 40), st.integers(1, 40), st.binary(min_size=1, max_size=200), st.sampled_from(["png", "tiff"]),
    st.sampled_from([None, True, False]),
)  # fmt: skip
def test_any_pixels_of_any_mode_are_read_or_refused_in_one_line(mode, width, height, content, kind, invert):
    length = len(Image.new(mode, (width, height)).tobytes())
    image = Image.frombytes(mode, (width, height), (content * (length // len(content) + 1))[:length])
    try:
        image.save(io.BytesIO(), kind)
    except OSError:
        return  # this kind of file has no such mode
    try:
        read(image, invert, kind=kind)
    except SqlibError as error:
        assert "\n" not in str(error) and "damaged" not in str(error)
