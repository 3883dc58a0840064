"""Makes an image smaller: a job type that is there if Pillow, an extra, is installed."""

import warnings
from io import BytesIO
from typing import Annotated

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from pydantic import Field

from mailroom.jobs.registry import File, Progress, job

WIDTH_MAX = 4000
#: Quality of JPEG and WebP, from 0 to 100.
QUALITY = 85
#: The formats that are read, with the file ending. No other reader of Pillow is ever tried: the one for EPS
#: runs Ghostscript.
ENDINGS = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp", "GIF": "gif"}
#: From this value on, an EXIF orientation swaps width and height.
SWAPPED_ORIENTATION = 5

#: 200 MB once it is decoded. A small file can claim to be a huge image.
Image.MAX_IMAGE_PIXELS = 50_000_000


@job("thumbnail", timeout_seconds=60)
def thumbnail(
    image: bytes, progress: Progress, width: Annotated[int, Field(ge=1, le=WIDTH_MAX)] = 200
) -> File:
    """Make a PNG, JPEG, WebP or GIF this many pixels wide, in its own format; a narrower one keeps its size.

    It is turned as its camera was held; metadata such as place and camera are left out. An animation becomes
    its first frame.
    """
    progress(0, "read")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            small, format = _read(image, width)
    except UnidentifiedImageError:
        text = f"expected a PNG, JPEG, WebP or GIF image, got {len(image)} bytes that are none"
        raise ValueError(text) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        most = Image.MAX_IMAGE_PIXELS
        raise ValueError(f"expected an image of at most {most} pixels, got a larger one") from None
    except Exception as e:  # Pillow raises almost anything at a broken file.
        reason = e or type(e).__name__
        raise ValueError(f"expected a whole image, got one that cannot be read: {reason}") from None
    progress(0.9, "write")
    written = BytesIO()
    profile = small.info.get("icc_profile")
    small.save(written, format, quality=QUALITY, icc_profile=profile)
    name = f"thumbnail.{ENDINGS[format]}"
    return File(name, written.getvalue(), f"image/{format.lower()}")


def _read(image: bytes, width: int) -> tuple[Image.Image, str]:
    """Return the small image without metadata, and its format."""
    with Image.open(BytesIO(image), formats=[*ENDINGS]) as opened:
        # MPO is a JPEG with several pictures, as some cameras write it; the first one is a plain JPEG.
        format = "JPEG" if opened.format == "MPO" else str(opened.format)
        orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
        is_swapped = orientation >= SWAPPED_ORIENTATION
        visible_width = opened.height if is_swapped else opened.width
        scale = min(1.0, width / visible_width)
        new_width = max(1, round(opened.width * scale))
        new_height = max(1, round(opened.height * scale))
        # A JPEG is then decoded at a fraction of its size, in a fraction of the memory.
        opened.draft(None, (2 * new_width, 2 * new_height))
        resized = _plain(opened).resize(
            (new_width, new_height),
            Image.Resampling.LANCZOS,
            reducing_gap=2.0,
        )
        small = ImageOps.exif_transpose(resized)
        # The colour profile is valid only for the mode it was made for.
        profile = opened.info.get("icc_profile") if small.mode == opened.mode else None
    small.info = {"icc_profile": profile} if profile else {}
    return small, format


def _plain(image: Image.Image) -> Image.Image:
    """Convert to a mode that can be resized and written: grey, colour, or colour with transparency."""
    if image.mode.startswith("I"):
        # 16 bits a pixel; without the division all but black would become white.
        return image.point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in ("L", "RGB"):
        return image
    mode = "L" if image.mode == "1" else "RGB"
    return image.convert(mode)
