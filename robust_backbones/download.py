"""One file over HTTPS: resumed where it was cut, retried, never mistaken for complete."""

import contextlib
import errno
import http.client
import os
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

ATTEMPTS = 5  # without a new byte in between
BACKOFF = 1.0  # seconds before the second attempt; doubled each time
TIMEOUT = 30.0  # seconds without a byte
BLOCK = 1 << 18  # bytes
_AGAIN = {408, 425, 429, 500, 502, 503, 504}  # HTTP statuses that may pass
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_LOCAL = {"localhost", "127.0.0.1", "::1"}


class DownloadError(Exception):
    """Why a file could not be had, as the end of a sentence. The caller adds whose and the fix."""


def download(url: str, part: Path) -> None:
    """Fetch `url` into the file `part`, which is complete when this returns.

    A `part` left by an earlier process is continued if the server still has the same file. When
    this fails, `part` stays to be continued, unless what came was not the file at all.

    Args:
        url: `https://...`; `http://` is allowed for this machine only.
        part: path to write to; `<part>.tag` beside it holds the server's name for the version.

    Raises:
        DownloadError: refused, not there, a page instead of a file, or cut off `ATTEMPTS` times.
    """
    part = Path(part)
    check_url(url)
    best, failures = _size(part), 0
    while True:
        try:
            return _transfer(url, part)
        except (OSError, http.client.HTTPException) as error:  # urllib's errors are OSErrors
            _raise_if_final(error, part)
            best, failures = (_size(part), 1) if _size(part) > best else (best, failures + 1)
            if failures >= ATTEMPTS:
                raise DownloadError(f"{_reason(error)}, {ATTEMPTS} times") from None
            time.sleep(BACKOFF * 2 ** (failures - 1))


def check_url(url: str) -> None:
    """Refuse what could be read or changed on its way.

    Raises:
        DownloadError: neither HTTPS nor this machine, or a URL with a password in it.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname
    except ValueError:
        raise DownloadError("this is not a URL") from None
    if not host or not (parts.scheme == "https" or (parts.scheme == "http" and host in _LOCAL)):
        raise DownloadError(f"'{parts.scheme}://{host or ''}' is not allowed, only https:// is")
    if "@" in parts.netloc:
        raise DownloadError("URLs with a user name or password are not supported")


class _Redirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> Any:
        check_url(newurl)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _transfer(url: str, part: Path) -> None:
    """One attempt. Raises OSError or HTTPException where another one may help."""
    from tqdm import tqdm

    tag_file = part.with_name(part.name + ".tag")
    have, tag = _size(part), tag_file.read_text() if tag_file.exists() else ""
    headers = {"User-Agent": "robust-backbones", "Accept-Encoding": "identity"}
    if have and tag:
        headers |= {
            "Range": f"bytes={have}-",
            "If-Range": tag,
        }  # another version: sent from its start
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT) as response:
        block = response.read(BLOCK)
        if response.headers.get_content_type() == "text/html" and b"\0" not in block:
            raise DownloadError("the server sent an HTML page instead of the file")
        if (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            mode = "ab"
        elif response.status == 206:
            raise DownloadError("the server sent another part of the file than was asked for")
        else:
            have, mode = 0, "wb"
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        part.parent.mkdir(parents=True, exist_ok=True)
        with open(part, mode) as file, _bar(tqdm, url, have, total) as bar:
            tag_file.write_text(_tag(response.headers))
            while block:
                file.write(block)
                bar.update(len(block))
                block = response.read(BLOCK)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and _size(part) != total:
        raise ConnectionError(f"the connection was cut after {_size(part)} of {total} bytes")
    tag_file.unlink()


def _bar(tqdm: Any, url: str, have: int, total: int | None) -> Any:
    name = urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1]
    # disable=None: only on a terminal
    return tqdm(desc=name, initial=have, total=total, unit="B", unit_scale=True, disable=None)


def _tag(headers: Any) -> str:
    """What `If-Range` takes; weak ETags do not promise the same bytes."""
    tag = headers.get("ETag") or ""
    return headers.get("Last-Modified") or "" if not tag or tag.startswith("W/") else tag


def _raise_if_final(error: Exception, part: Path) -> None:
    """Raise a `DownloadError` for what another attempt cannot mend."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        if error.code == 416:  # our part is longer than the file: start anew
            remove(part)
        elif error.code in (401, 403):
            raise DownloadError(
                f"the server refuses access ({error.code} {error.reason})"
            ) from None
        elif error.code in (404, 410):
            raise DownloadError(f"the link is dead ({error.code} {error.reason})") from None
        elif error.code not in _AGAIN:
            raise DownloadError(f"the server says {error.code} {error.reason}") from None
    elif isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError):
        raise DownloadError("the server's certificate is not trusted (see SSL_CERT_FILE)") from None
    elif isinstance(error, OSError) and getattr(error, "filename", None):  # ours, not the network's
        raise DownloadError(f"cannot write {error.filename}: {error.strerror}") from None
    elif isinstance(error, OSError) and error.errno in _DISK:
        raise DownloadError(f"cannot write {part}: {error.strerror}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server says {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"no connection ({error.reason})"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection was cut"
    return str(error) or type(error).__name__


def remove(part: Path) -> None:
    """Remove a partial file and its tag."""
    for path in (part, part.with_name(part.name + ".tag")):
        path.unlink(missing_ok=True)


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0
