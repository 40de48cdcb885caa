"""What is decoded, and what Pillow is kept from opening."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib

import numpy as np
import pytest
from bench.folder_sources import EUROSAT_ROW, SUN_ROW, load, refused, write
from PIL import Image
from s2a_bench.data.images import (
    IMAGE_SUFFIXES,
    LOSSY_SUFFIXES,
    UNREAD_SUFFIXES,
    decode_rgb,
    describe_conversions,
    is_image,
    looks_reencoded,
    read_image_bytes,
)
from s2a_bench.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)


def encoded(kind: str, **more: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, kind, **more)
    return out.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "PPM", "BMP", "TIFF"])
def test_images_without_loss_are_decoded_exactly_whatever_they_are_called(kind):
    assert np.array_equal(np.asarray(decode_rgb(encoded(kind), "x.jpg")), PIXELS)


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF"])
def test_other_images_of_datasets_are_decoded(kind):
    with Image.open(io.BytesIO(encoded(kind))) as image:
        assert np.array_equal(np.asarray(decode_rgb(encoded(kind), "x.jpg")), np.asarray(image.convert("RGB")))


def test_a_jpeg_of_several_pictures_is_its_first():
    """Cameras write such files (MPO) and call them .jpg."""
    other = Image.fromarray(255 - PIXELS)
    data = encoded("MPO", save_all=True, append_images=[other])
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "MPO"
        assert np.array_equal(np.asarray(decode_rgb(data, "x.jpg")), np.asarray(image.convert("RGB")))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n(x) show\n%%EOF\n"


@pytest.mark.parametrize("kind", ["by hand", "EPS", "PDF", "ICO", "TGA", "PCX", "SGI", "JPEG2000", "DDS", "ICNS"])
def test_no_other_format_is_opened(kind, monkeypatch):
    data = EPS if kind == "by hand" else encoded(kind)
    monkeypatch.setattr("subprocess.Popen", lambda *a, **k: pytest.fail(f"started {a}"))
    for read in (decode_rgb, describe_conversions):
        with pytest.raises(InputError, match="cannot be decoded"):
            read(data, "x.jpg")
    assert not looks_reencoded([data])


def png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [10_000, 14_000, 60_000])
@pytest.mark.parametrize("strict", [False, True])
def test_an_image_of_far_too_many_pixels_is_not_decoded(side, strict):
    with warnings.catch_warnings():
        warnings.simplefilter("error" if strict else "ignore")
        for read in (decode_rgb, describe_conversions):
            with pytest.raises(InputError, match="huge"):
                read(png(side, side, b""), "x.png")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "PPM", "BMP", "WEBP", "GIF", "TIFF", "MPO"])
def test_a_damaged_image_is_one_sentence(kind):
    """Cut off anywhere, and with bytes changed: an image or a sentence, never another error."""
    whole = encoded(kind)
    rng = np.random.default_rng(1)
    for i in range(150):
        raw = bytearray(whole)
        if i % 2:
            raw = raw[: rng.integers(0, len(raw))]
        for at in rng.integers(0, max(1, min(len(raw), 80 if i % 3 else len(raw))), 3):
            if raw:
                raw[at] = rng.integers(0, 256)
        for read in (decode_rgb, describe_conversions):
            try:
                read(bytes(raw), "x.jpg")
            except InputError as error:
                assert "\n" not in str(error)


# Files


@pytest.mark.parametrize("suffix", [".jfif", ".JFIF", ".jpe", ".jif", ".JPEG", ".pgm"])
def test_every_usual_name_of_a_jpeg_is_that_of_an_image(tmp_path, suffix):
    names = [f"2750/c{i}/x{n}{suffix if n else '.jpg'}" for i in range(10) for n in range(3)]
    files = write(tmp_path, names)
    _, read = load(tmp_path, EUROSAT_ROW)
    assert read == {name.removeprefix("2750/"): data for name, data in files.items()}
    assert is_image(f"a/x{suffix}") and (suffix == ".pgm" or f"x{suffix}".lower().endswith(LOSSY_SUFFIXES))


@pytest.mark.parametrize("suffix", [".tif", ".GIF", ".avif", ".heic", ".jp2"])
def test_images_of_kinds_that_are_not_read_are_not_lost_without_a_word(tmp_path, suffix):
    write(tmp_path / "one", [f"2750/c{i}/x.jpg" for i in range(10)] + [f"2750/c3/y{suffix}"])
    refused(tmp_path / "one", EUROSAT_ROW, "kind of image that is not read here")
    write(tmp_path / "two", [f"SUN397/{c}/{c}ar/x.jpg" for c in "abc"] + [f"SUN397/a/aar/y{suffix}"])
    refused(tmp_path / "two", SUN_ROW, "kind of image that is not read here")
    assert not set(UNREAD_SUFFIXES) & set(IMAGE_SUFFIXES)


@pytest.mark.parametrize("kind", ["missing", "pipe", "folder", "device", "huge", "long"])
def test_what_is_no_file_is_one_sentence_and_does_not_hang(tmp_path, kind):
    path = tmp_path / "x.jpg"
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "huge":
            with path.open("wb") as out:
                out.truncate(1 << 40)
        case "long":
            path = tmp_path / ("x" * 5000)
    with pytest.raises(InputError, match=r"cannot be read|largest image") as caught:
        read_image_bytes(path)
    assert "\n" not in str(caught.value)
