"""Addresses of machines."""

import re

_OWN = re.compile(r"localhost|127\.[\d.]+|\[?::1\]?|0\.0\.0\.0")


def is_own_address(host: str) -> bool:
    """Return whether a host name is a machine's name for itself, which other machines cannot use.

    Args:
        host: host name or address, without scheme and port.
    """
    return _OWN.fullmatch(host) is not None
