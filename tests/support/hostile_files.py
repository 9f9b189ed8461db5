"""What the tests of hostile files share."""

import io
import tarfile

import pytest
from PIL import Image

from robust_backbones.core.errors import UserError


def refuses(message: str, *names):
    """Expect a UserError with this text, and with the names."""
    return pytest.raises(UserError, match="(?s)" + ".*".join([*map(str, names), message]))


def regular(*names: str) -> list[tuple]:
    """Members of an archive: an image under each of these names."""
    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, "png")
    return [(name, file.getvalue(), tarfile.REGTYPE, "") for name in names]
