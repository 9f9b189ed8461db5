"""Read members of tar files. The files are untrusted."""

import tarfile

MAX_MEMBER_BYTES = 1 << 28  # largest image file in a tar file


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
