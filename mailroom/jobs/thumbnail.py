"""The shipped job that makes an image smaller. It needs Pillow, an extra, and is there only where that is installed."""

import warnings
from io import BytesIO
from typing import Annotated

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from pydantic import Field

from mailroom.jobs.registry import File, Progress, job

WIDTH_MAX = 4000
#: Of JPEG and WebP, from 0 to 100.
QUALITY = 85
#: What is read, with the ending of what is written. No other of Pillow's readers is ever tried: the one for EPS runs Ghostscript.
ENDINGS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif"}
#: EXIF's orientations from here on lie on their side.
ON_ITS_SIDE = 5

#: Of an image that is taken: 200 MB once it is decoded. A small file can claim to be a huge image.
Image.MAX_IMAGE_PIXELS = 50_000_000


@job("thumbnail", timeout_seconds=60)
def thumbnail(
    image: bytes, progress: Progress, width: Annotated[int, Field(ge=1, le=WIDTH_MAX)] = 200
) -> File:
    """Make a PNG, JPEG, WebP or GIF this many pixels wide, in its own format; one that is no wider stays as large as it is.

    It is turned as its camera was held; where and with what it was taken is left out. Of a moving image it is the first frame.
    """
    progress(0, "read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            small, format = _read(image, width)
    except UnidentifiedImageError:
        raise ValueError(
            f"expected a PNG, JPEG, WebP or GIF image, got {len(image)} bytes that are none"
        ) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ValueError(
            f"expected an image of at most {Image.MAX_IMAGE_PIXELS} pixels, got a larger one"
        ) from None
    except Exception as e:  # Whatever a broken file leads Pillow to.
        raise ValueError(
            f"expected a whole image, got one that cannot be read: {e or type(e).__name__}"
        ) from None
    progress(0.9, "write")
    written = BytesIO()
    small.save(written, format, quality=QUALITY, icc_profile=small.info.get("icc_profile"))
    return File(f"thumbnail.{ENDINGS[format]}", written.getvalue(), f"image/{format.lower()}")


def _read(image: bytes, width: int) -> tuple[Image.Image, str]:
    """The small image, with nothing but what is seen of it, and its format."""
    with Image.open(BytesIO(image), formats=[*ENDINGS]) as opened:
        # A JPEG of several pictures, as some cameras write it, is called otherwise; its first one is a plain JPEG.
        format = "JPEG" if opened.format == "MPO" else str(opened.format)
        shown_width = (
            opened.height
            if opened.getexif().get(ExifTags.Base.Orientation, 1) >= ON_ITS_SIDE
            else opened.width
        )
        scale = min(1.0, width / shown_width)
        size = max(1, round(opened.width * scale)), max(1, round(opened.height * scale))
        opened.draft(
            None, (2 * size[0], 2 * size[1])
        )  # A JPEG is decoded at a fraction of its size, in a fraction of the memory.
        small = ImageOps.exif_transpose(
            _plain(opened).resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
        )
        profile = (
            opened.info.get("icc_profile") if small.mode == opened.mode else None
        )  # What its numbers mean, as colours.
    small.info = {"icc_profile": profile} if profile else {}
    return small, format


def _plain(image: Image.Image) -> Image.Image:
    """In a mode that can be made smaller and written: grey, colour, or colour with transparency."""
    if image.mode.startswith("I"):
        return image.point(lambda value: value / 256).convert(
            "L"
        )  # 16 bits; converted as they are, all but black would be white.
    if image.has_transparency_data:
        return image.convert("RGBA")
    return image if image.mode in ("L", "RGB") else image.convert("L" if image.mode == "1" else "RGB")
