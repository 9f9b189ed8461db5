"""Images from files that nobody vouches for."""

import contextlib
import tarfile
from collections.abc import Iterator

from PIL import Image

from robust_backbones.core.errors import UserError

MEMBER = 1 << 28  # bytes of one image in a tar file


@contextlib.contextmanager
def readable(name: object) -> Iterator[None]:
    """Turn whatever a decoder raises in this block into an error that names the image.

    Raises:
        UserError: the file is missing, damaged, or claims too many pixels.
    """
    try:
        yield
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"image '{name}' does not exist.") from None
    except Exception as error:  # a damaged file can raise anything in a decoder
        reason = str(error) or type(error).__name__
        raise UserError(
            f"{name} cannot be read as an image ({reason}); replace or remove it."
        ) from None


def check_size(image: Image.Image) -> None:
    """Refuse a Pillow image that would take gigabytes: a few bytes can claim as many pixels as they
    like. Pillow itself only warns up to twice its own limit.

    Raises:
        ValueError: more pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit and image.width * image.height > limit:
        raise ValueError(
            f"{image.width} x {image.height} pixels are more than {limit}, the limit that "
            "PIL.Image.MAX_IMAGE_PIXELS sets"
        )


def read_member(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of a tar file's regular member, read into memory, never written to the disk.

    Raises:
        ValueError: more than `MEMBER`, or a sparse file, which can claim gigabytes of zeros.
    """
    if member.issparse() or member.size > MEMBER:
        raise ValueError(f"'{member.name}' is sparse or claims more than {MEMBER} bytes")
    file = archive.extractfile(member)
    assert file is not None  # of a regular member
    return file.read()
