"""The thumbnail job: an image in, a small one out, and words for all that is none."""

import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from mailroom.jobs import registry
from mailroom.jobs.registry import File, Progress, job_type
from mailroom.jobs.thumbnail import WIDTH_MAX, thumbnail
from mailroom.model.errors import InvalidMessage

RED, GREEN, BLUE = (254, 0, 0), (0, 128, 0), (0, 0, 254)


class Silent:
    def __call__(self, fraction: float, step: str = "") -> None: ...

    def wait(self, seconds: float) -> None: ...


SILENT: Progress = Silent()


def picture(mode: str = "RGB", size: tuple[int, int] = (400, 200)) -> Image.Image:
    """Red on the left, blue on the right."""
    made = Image.new("RGB", size, RED)
    made.paste(BLUE, (size[0] // 2, 0, *size))
    return made.convert(mode)


def written(image: Image.Image, format: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def small(image: bytes, width: int = 100) -> tuple[Image.Image, File]:
    file = thumbnail(image, SILENT, width)
    opened = Image.open(BytesIO(file.content))
    opened.load()
    return opened, file


def near(colour: Any, other: tuple[int, ...]) -> bool:
    return len(colour) == len(other) and all(
        abs(a - b) < 12 for a, b in zip(colour, other, strict=True)
    )


@pytest.mark.parametrize(
    ("format", "name", "content_type"),
    [
        ("PNG", "thumbnail.png", "image/png"),
        ("JPEG", "thumbnail.jpg", "image/jpeg"),
        ("WEBP", "thumbnail.webp", "image/webp"),
        ("GIF", "thumbnail.gif", "image/gif"),
    ],
)
def test_an_image_keeps_its_format_and_shape(format: str, name: str, content_type: str) -> None:
    image, file = small(written(picture(), format))
    assert (image.format, image.size) == (format, (100, 50))
    assert (file.name, file.content_type) == (name, content_type)
    assert near(image.convert("RGB").getpixel((10, 25)), RED)
    assert near(image.convert("RGB").getpixel((90, 25)), BLUE)


def test_an_image_is_never_enlarged_and_never_vanishes() -> None:
    assert small(written(picture(size=(40, 20)), "PNG"), width=4000)[0].size == (40, 20)
    assert small(written(picture(size=(3000, 2)), "PNG"), width=10)[0].size == (10, 1)


@pytest.mark.parametrize(
    ("mode", "format", "becomes"),
    [
        ("CMYK", "JPEG", "RGB"),
        ("L", "JPEG", "L"),
        ("P", "PNG", "RGB"),
        ("1", "PNG", "L"),
        ("LA", "PNG", "RGBA"),
        ("RGBA", "PNG", "RGBA"),
    ],
)
def test_every_mode_is_made_plain(mode: str, format: str, becomes: str) -> None:
    image, _ = small(written(picture(mode), format))
    assert (image.mode, image.size) == (becomes, (100, 50))
    if mode in ("CMYK", "P", "RGBA"):
        assert near(image.convert("RGB").getpixel((10, 25)), RED)


def test_sixteen_bits_a_pixel_become_eight() -> None:
    image, _ = small(written(Image.new("I;16", (400, 200), 0x8000), "PNG"))
    assert image.mode == "L"
    assert near((image.getpixel((5, 5)),), (128,))


@pytest.mark.parametrize("format", ["PNG", "WEBP", "GIF"])
def test_what_is_transparent_stays_so(format: str) -> None:
    image = picture("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 200, 200))
    made, _ = small(written(image, format))
    assert made.convert("RGBA").getpixel((10, 25))[3] == 0  # type: ignore[index]  # Pillow says float too
    assert near(made.convert("RGBA").getpixel((90, 25)), (*BLUE, 255))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_an_image_is_turned_as_its_camera_was_held_and_tells_nothing_else(format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it to the right
    exif[0x010F] = "Camera of Alice"
    exif.get_ifd(0x8825)[1] = "N"
    image, file = small(written(picture(), format, exif=exif))
    assert image.size == (100, 200)
    assert near(image.convert("RGB").getpixel((50, 20)), RED)
    assert near(image.convert("RGB").getpixel((50, 180)), BLUE)
    assert dict(image.getexif()) == {}
    assert b"Alice" not in file.content


def test_words_in_a_file_are_left_out_and_its_colours_are_not() -> None:
    profile = b"\0" * 36 + b"acsp" + b"\0" * 200
    image, file = small(written(picture(), "JPEG", comment=b"by Alice", icc_profile=profile))
    assert b"Alice" not in file.content
    assert image.info["icc_profile"] == profile
    assert "icc_profile" not in small(written(picture("CMYK"), "JPEG", icc_profile=profile))[0].info
    assert b"Alice" not in small(written(picture("P"), "GIF", comment=b"by Alice"))[1].content


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_of_a_moving_image_it_is_the_first_frame(format: str) -> None:
    image, _ = small(
        written(
            picture(), format, save_all=True, append_images=[Image.new("RGB", (400, 200), GREEN)]
        )
    )
    assert getattr(image, "n_frames", 1) == 1
    assert near(image.convert("RGB").getpixel((10, 25)), RED)


def test_a_jpeg_of_several_pictures_is_a_jpeg() -> None:
    image, file = small(written(picture(), "MPO", save_all=True, append_images=[picture()]))
    assert (image.format, file.name) == ("JPEG", "thumbnail.jpg")


def bomb() -> bytes:
    """A PNG of a few bytes that says it is 30,000 × 30,000."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def half(image: bytes) -> bytes:
    return image[: len(image) // 2]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (lambda: b"", "expected a PNG, JPEG, WebP or GIF image, got 0 bytes that are none"),
        (lambda: b"geheim" * 100, "got 600 bytes that are none"),
        (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "that are none"),
        (lambda: written(picture(), "BMP"), "that are none"),
        (lambda: written(picture(), "TIFF"), "that are none"),
        (bomb, "expected an image of at most 50000000 pixels, got a larger one"),
        (
            lambda: written(Image.new("1", (8000, 8000)), "PNG"),
            "expected an image of at most 50000000 pixels",
        ),
        (
            lambda: half(written(picture(), "JPEG")),
            "expected a whole image, got one that cannot be read: ",
        ),
        (lambda: half(written(picture(), "PNG")), "expected a whole image"),
        (lambda: half(written(picture(), "WEBP")), "expected a whole image"),
        (lambda: half(written(picture(), "GIF")), "expected a whole image"),
    ],
)
def test_what_is_no_image_is_refused_in_words(image: Callable[[], bytes], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        thumbnail(image(), SILENT)


@pytest.mark.parametrize("width", [0, -1, WIDTH_MAX + 1])
def test_a_width_out_of_bounds_is_refused(width: int) -> None:
    with pytest.raises(InvalidMessage, match=f"#/args/width: expected .*, got {width}"):
        job_type("thumbnail").check({"image": "", "width": width})


def outcome(image: bytes) -> str:
    try:
        return thumbnail(image, SILENT, 16).name
    except ValueError as e:
        return str(e)


def test_whatever_a_broken_file_holds_ends_in_words() -> None:
    for format in ("PNG", "JPEG", "WEBP", "GIF"):
        whole = written(picture(size=(64, 48)), format)
        for position in range(0, len(whole), max(1, len(whole) // 60)):
            broken = bytearray(whole)
            broken[position] ^= 0xFF
            assert outcome(bytes(broken)).startswith(("thumbnail.", "expected a"))


def test_it_is_a_job_type_with_the_image_as_base64() -> None:
    kind = job_type("thumbnail")
    assert kind.check({"image": "aGVsbG8="}) == {"image": b"hello", "width": 200}
    assert kind.schema()["properties"]["image"]["contentEncoding"] == "base64"
    assert (kind.timeout_seconds, kind.isolated, kind.max_attempts) == (60, True, 1)
    assert (
        registry.result_of(thumbnail(written(picture(), "PNG"), SILENT)).value["name"]
        == "thumbnail.png"
    )
