"""Decode untrusted image files safely."""

import contextlib
import tarfile
from collections.abc import Iterator

from PIL import Image

from robust_backbones.core.errors import UserError

MAX_MEMBER_BYTES = 1 << 28  # largest image file in a tar file


@contextlib.contextmanager
def decoding_errors(name: object) -> Iterator[None]:
    """Convert all decoder exceptions in the block to a UserError that names the image.

    Args:
        name: name of the image in the error message.

    Raises:
        UserError: the file is missing, damaged, or claims too many pixels.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"image '{name}' does not exist.") from None
    except Exception as error:  # decoders raise exceptions of any type on damaged files
        reason = str(error) or type(error).__name__
        raise UserError(
            f"{name} cannot be read as an image ({reason}). Replace or remove it."
        ) from None


def check_size(image: Image.Image) -> None:
    """Reject an image that would need gigabytes of memory.

    A file of a few bytes can claim any number of pixels. Pillow only
    warns about images with up to twice the allowed number of pixels.

    Raises:
        ValueError: the image has more than `PIL.Image.MAX_IMAGE_PIXELS` pixels.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit and image.width * image.height > limit:
        raise ValueError(
            f"{image.width} x {image.height} pixels exceed the limit of {limit} pixels, "
            "PIL.Image.MAX_IMAGE_PIXELS"
        )


def read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """Read a regular member of a tar file into memory, without writing it to disk.

    Raises:
        ValueError: the member is larger than `MAX_MEMBER_BYTES`, or sparse. A sparse member can
            claim gigabytes of zeros.
    """
    if member.issparse() or member.size > MAX_MEMBER_BYTES:
        raise ValueError(f"'{member.name}' is sparse or claims more than {MAX_MEMBER_BYTES} bytes")
    file = archive.extractfile(member)
    assert file is not None  # regular members always have a file
    return file.read()
