"""Images of every kind a folder may hold, and files that are none."""

import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from jaxdet.data import decoding


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(height=12, width=20):
    """A smooth RGB image without any symmetry."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 12, y * 20, 255 - x * 5 - y * 10], axis=-1).astype(np.uint8)


def png(width, height, depth, colour_type, rows):
    """A PNG of our own making, for what Pillow does not write."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    body = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def with_orientation(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(kind, {})
    return encoded(Image.fromarray(gradient()), kind, exif=exif, **lossless)


def test_rgb_comes_back_as_it_is(tmp_path):
    pixels = gradient()
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(pixels)))
    for source in (tmp_path / "a.png", str(tmp_path / "a.png"), (tmp_path / "a.png").read_bytes()):
        decoded = decoding.decode(source)
        assert decoded.dtype == np.uint8 and decoded.flags["C_CONTIGUOUS"] and decoded.flags["WRITEABLE"]
        np.testing.assert_array_equal(decoded, pixels)
        assert decoding.oriented_size(source) == decoding.checked_size(source) == (12, 20)


@pytest.mark.parametrize("mode", ["1", "L", "P"])
def test_grey_and_palette(mode):
    image = Image.fromarray(gradient()).convert(mode)
    np.testing.assert_array_equal(decoding.decode(encoded(image)), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg():
    red = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    decoded = decoding.decode(encoded(red, "JPEG"))
    assert abs(decoded.astype(int) - (255, 0, 0)).max() <= 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "PPM"])
def test_sixteen_bit_grey_is_scaled(kind):
    samples = np.array([[0, 1, 128, 129, 257 * 100, 40000, 65535]], np.uint16)
    decoded = decoding.decode(encoded(Image.fromarray(samples), kind))
    expected = np.round(samples / 65535 * 255).astype(np.uint8)
    np.testing.assert_array_equal(decoded, np.repeat(expected[:, :, None], 3, axis=2))


def test_sixteen_bit_colour_is_scaled():
    samples = np.array([[[0, 257 * 100, 65535], [257 * 7, 257 * 8, 257 * 9]]], ">u2")
    decoded = decoding.decode(png(2, 1, 16, 2, [samples[0].tobytes()]))
    np.testing.assert_array_equal(decoded, [[[0, 100, 255], [7, 8, 9]]])


def test_sixteen_bit_grey_with_alpha():
    samples = np.array([[[257 * 50, 65535], [257 * 50, 0]]], ">u2")
    decoded = decoding.decode(png(2, 1, 16, 4, [samples[0].tobytes()]))
    np.testing.assert_array_equal(decoded, [[[50] * 3, [255] * 3]])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_alpha_is_composited_on_white(mode):
    image = Image.new(mode, (3, 1))
    colour = (10, 60, 110) if mode == "RGBA" else (40,)
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (*colour, alpha))
    decoded = decoding.decode(encoded(image))[0].astype(int)
    expected = [
        [255] * 3,
        [round(c * 128 / 255 + 127) for c in colour] * (3 // len(colour)),
        colour * (3 // len(colour)),
    ]
    np.testing.assert_allclose(decoded, expected, atol=1)


def test_transparent_palette_entry_is_white():
    image = Image.new("P", (2, 1))
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putpixel((1, 0), 1)
    decoded = decoding.decode(encoded(image, transparency=0))
    np.testing.assert_array_equal(decoded, [[[255, 255, 255], [0, 0, 200]]])


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new("RGB", (8, 6), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    decoded = decoding.decode(data).astype(int)
    assert decoded.shape == (6, 8, 3) and abs(decoded - (250, 0, 0)).max() < 12


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation(kind, orientation):
    data = with_orientation(kind, orientation)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    np.testing.assert_array_equal(decoding.decode(data), expected)
    assert decoding.oriented_size(data) == expected.shape[:2]
    assert expected.shape[:2] == ((20, 12) if 5 <= orientation <= 8 else (12, 20))


def test_orientation_six_turns_clockwise():
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 0] = 255  # top left of what the sensor saw ends up top right
    exif = Image.Exif()
    exif[0x0112] = 6
    decoded = decoding.decode(encoded(Image.fromarray(pixels), exif=exif))
    assert decoded.shape == (3, 2, 3) and decoded[0, 1].min() == 255 and decoded.sum() == 3 * 255


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_image():
    data = encoded(Image.fromarray(gradient()), "JPEG", exif=b"Exif\0\0MM\0*garbage")
    assert decoding.decode(data).shape == (12, 20, 3) and decoding.oriented_size(data) == (12, 20)


def test_orientation_of_a_png_is_read_without_decoding():
    data = with_orientation("PNG", 6)
    assert decoding.oriented_size(data[: data.index(b"IDAT") + 4]) == (20, 12)


@pytest.mark.parametrize("data", [b"", b"\0" * 500, b"<html>404 not found</html>", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_what_is_no_image_is_named(tmp_path, data):
    path = tmp_path / "holiday.jpg"
    path.write_bytes(data)
    for function in (decoding.decode, decoding.oriented_size, decoding.checked_size):
        with pytest.raises(ValueError, match=r"holiday\.jpg"):
            function(path)
        with pytest.raises(ValueError, match=f"{len(data)} bytes"):
            function(data)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_image(tmp_path, kind, share):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    path = tmp_path / "half.bin"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=r"half\.bin"):
        decoding.decode(path)
    if kind in ("JPEG", "PNG"):  # the other formats keep no mark at their end, or have the header there
        assert decoding.oriented_size(path) == (64, 64)
        with pytest.raises(ValueError, match=r"half\.bin"):
            decoding.checked_size(path)


def test_bytes_after_the_end_are_no_truncation(tmp_path):
    data = encoded(Image.fromarray(gradient()), "JPEG")
    for tail in (b"\0" * 5, b"camera maker's trailer" * 9):
        assert decoding.checked_size(data + tail) == (12, 20)


def test_decompression_bomb(tmp_path, monkeypatch):
    path = tmp_path / "bomb.png"
    path.write_bytes(png(60000, 60000, 1, 0, [b"\0" * 7500]))
    for function in (decoding.decode, decoding.oriented_size):
        with pytest.raises(ValueError, match=r"bomb\.png"):
            function(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 239)
    path.write_bytes(encoded(Image.fromarray(gradient())))
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(ValueError, match="20x12"):
        decoding.decode(path)


def test_samples_without_a_known_white():
    for samples in (np.ones((4, 4), np.float32), np.full((4, 4), 70000, np.int32), np.full((4, 4), -1, np.int32)):
        with pytest.raises(ValueError, match="8 or 16 bits"):
            decoding.decode(encoded(Image.fromarray(samples), "TIFF"))


def test_missing_file(tmp_path):
    for function in (decoding.decode, decoding.oriented_size, decoding.checked_size):
        with pytest.raises(FileNotFoundError, match=r"none\.jpg"):
            function(tmp_path / "none.jpg")


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF"]),
    st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=4),
    st.integers(1, 5000),
)
def test_any_damage_ends_in_an_image_or_a_value_error(kind, edits, length):
    data = bytearray(with_orientation(kind, 6))
    for place, value in edits:
        data[place % len(data)] = value
    data = bytes(data[: max(length, 20)])
    try:
        pixels = decoding.decode(data)
    except ValueError:
        return
    assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
    assert decoding.oriented_size(data) == pixels.shape[:2]
