"""Download one file from the Hugging Face Hub, from Google Drive or over HTTPS."""

import contextlib
import errno
import glob
import http.client
import logging
import os
import socket
import ssl
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import constants
from tqdm import tqdm

from robust_backbones.core.extras import missing

ATTEMPTS = 5  # consecutive failed attempts without new data, after which the download fails
BACKOFF = 1.0  # seconds to wait before the second attempt; the wait doubles each time
TIMEOUT = 30.0  # seconds without data after which an attempt fails
CONNECT_TIMEOUT = 5.0  # seconds to wait for the first connection to a server
BLOCK = 1 << 18  # bytes per read
PUBLISHER = "https://huggingface.co"
_RETRY_STATUSES = {408, 425, 429, 500, 502, 503, 504}  # temporary HTTP errors
_WRITE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
_DRIVE = ("drive.google.com", "docs.google.com")
_LOCALHOST = {"localhost", "127.0.0.1", "::1"}


class DownloadError(Exception):
    """A download failed. The message is the reason, without the file name and a final period."""


class MissingFile(DownloadError):
    """The Hub has no such file."""


def hub_endpoint() -> str:
    """Return the URL of the Hub, or of the mirror in `$HF_ENDPOINT`."""
    return os.environ.get("HF_ENDPOINT", PUBLISHER).rstrip("/")


def hub_url(endpoint: str, repo: str, file: str, revision: str | None) -> str:
    """Return the URL of a file on the Hub. If `revision` is None, use the newest commit."""
    return f"{endpoint}/{repo}/resolve/{revision or 'main'}/{file}"


def from_hub(repo: str, file: str, revision: str | None) -> Path:
    """Download a file with the Hub's client, which has its own cache, mirrors and offline mode.

    Args:
        repo: `OWNER/NAME`.
        file: path inside the repository.
        revision: branch, tag or commit; None: the newest commit.

    Returns:
        Path in the Hub's cache.

    Raises:
        MissingFile: the repository does not exist, or has no such file.
        DownloadError: the download failed.
    """
    logging.getLogger("huggingface_hub.utils._http").addFilter(_shorten_retry_message)
    offline = None if constants.HF_HUB_OFFLINE else _unreachable(hub_endpoint())
    for attempt in range(1, ATTEMPTS + 1):
        try:
            path = huggingface_hub.hf_hub_download(
                repo_id=repo, filename=file, revision=revision, local_files_only=bool(offline)
            )
            return Path(path)
        except Exception as error:  # the Hub's client changes its exception types
            if offline:
                raise DownloadError(offline) from None
            status = getattr(getattr(error, "response", None), "status_code", 0)
            if status < 500 or attempt == ATTEMPTS:
                kind = MissingFile if status == 404 else DownloadError
                raise kind(_hub_reason(error, repo, file)) from None
            time.sleep(BACKOFF * 2 ** (attempt - 1))
    raise AssertionError("the loop returns or raises")


def _unreachable(url: str) -> str | None:
    """Return the reason why a server cannot be connected to, or None.

    The Hub's client retries for half a minute, even without a network. The connection is not
    tested if it goes through a proxy.
    """
    parts = urllib.parse.urlsplit(url)
    proxies, host = urllib.request.getproxies(), parts.hostname or ""
    if {parts.scheme, "all"} & proxies.keys() and not urllib.request.proxy_bypass(host):
        return None
    try:
        port = parts.port or {"http": 80}.get(parts.scheme, 443)
        socket.create_connection((host, port), CONNECT_TIMEOUT).close()
    except (OSError, ValueError) as error:
        server = f"{parts.scheme}://{parts.netloc}"
        return f"{server} cannot be reached ({getattr(error, 'strerror', None) or error})"
    return None


def _shorten_retry_message(record: logging.LogRecord) -> bool:
    """Log one clear line per retry instead of the two lines of the Hub's client."""
    text = record.getMessage()
    if text.startswith("Retrying in"):
        record.msg, record.args = f"{hub_endpoint()} does not answer. {text}", ()
    return "thrown while requesting" not in text


def _hub_reason(error: Exception, repo: str, file: str) -> str:
    from huggingface_hub import errors  # slow to import, and needed only after a failure

    status = getattr(getattr(error, "response", None), "status_code", None)
    cause = error.__cause__ or error
    text = next(iter(str(cause).splitlines()), "")[:200].rstrip(".") or type(cause).__name__
    if isinstance(error, errors.LocalEntryNotFoundError):
        if constants.HF_HUB_OFFLINE:
            return f"HF_HUB_OFFLINE is set, and the file is not in {constants.HF_HUB_CACHE}"
        if isinstance(cause, errors.FileMetadataError):
            return f"{hub_endpoint()} does not answer like a Hub (is it a proxy's login page?)"
        return f"{hub_endpoint()} cannot be reached ({text})"
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return f"{repo} does not exist, or it requires a login: set HF_TOKEN ({status})"
    if status == 404:
        return f"{repo} has no {file} at that revision (404)"
    return f"{hub_endpoint()}: {text}"


def on_drive(url: str) -> bool:
    """Return whether a URL leads to Google Drive."""
    return urllib.parse.urlsplit(url).hostname in _DRIVE


def from_drive(url: str, path: Path) -> None:
    """Download a file from Google Drive with gdown, which confirms Google's page about viruses.

    Interrupted connections are resumed. A later call starts from scratch, because gdown cannot tell
    whether the file was replaced in the meantime.

    Raises:
        DownloadError: gdown is not installed, or the download failed.
    """
    try:
        import gdown  # optional
    except ImportError:
        raise DownloadError(missing("gdown", "drive", "files on Google Drive")) from None
    if reason := _unreachable(url):
        raise DownloadError(reason)
    path.parent.mkdir(parents=True, exist_ok=True)
    for unfinished in path.parent.glob(f"{glob.escape(path.name)}*.part"):
        unfinished.unlink()
    quiet = not sys.stderr.isatty()
    try:
        gdown.download(url, str(path), quiet, use_cookies=False, timeout=TIMEOUT, retries=ATTEMPTS)
    except (gdown.DownloadError, OSError) as error:  # errors of requests are OSErrors
        # gdown's messages have a heading, Google's reason and advice.
        paragraphs = [" ".join(text.split()) for text in str(error).split("\n\n")]
        raise DownloadError(f"Google Drive: {paragraphs[:2][-1].rstrip('.')}") from None


def from_url(url: str, part: Path) -> None:
    """Download `url` into the file `part`, which is complete when this function returns.

    An unfinished download in `part` is resumed if the server still has the same version of the
    file. If the download fails, `part` is not removed, so that a later call can resume it.

    Args:
        url: `https://...`; `http://` is allowed for localhost only.
        part: path of the file; until the download is complete, `<part>.tag` stores the version of
            the file on the server.

    Raises:
        DownloadError: the URL is refused, the server cannot be reached, the file does not exist,
            the server sent a page instead of a file, or `ATTEMPTS` consecutive attempts failed.
    """
    part = Path(part)
    check_url(url)
    if reason := _unreachable(url):
        raise DownloadError(reason)
    most, failures = _size(part), 0
    while True:
        try:
            return _transfer(url, part)
        except (OSError, http.client.HTTPException) as error:  # urllib's errors are OSErrors
            _raise_if_permanent(error, part)
            most, failures = (_size(part), 1) if _size(part) > most else (most, failures + 1)
            if failures >= ATTEMPTS:
                raise DownloadError(f"{_reason(error)}, {ATTEMPTS} times") from None
            time.sleep(BACKOFF * 2 ** (failures - 1))


def check_url(url: str) -> None:
    """Reject a URL that is neither HTTPS nor on localhost, or that contains credentials.

    Raises:
        DownloadError: the URL is not allowed.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        host = parts.hostname
    except ValueError:
        raise DownloadError("this is not a URL") from None
    local = parts.scheme == "http" and host in _LOCALHOST
    if not host or not (parts.scheme == "https" or local):
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
    """Make one download attempt.

    Raises:
        OSError, HTTPException: the attempt failed, but another attempt may succeed.
        DownloadError: the server sent a page or the wrong part of the file.
    """
    tag_file = _tag_file(part)
    start, tag = _size(part), tag_file.read_text() if tag_file.exists() else ""
    headers = {"User-Agent": "robust-backbones", "Accept-Encoding": "identity"}
    if start and tag:  # with If-Range, the server sends a changed file from its first byte
        headers |= {"Range": f"bytes={start}-", "If-Range": tag}
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.build_opener(_Redirects).open(request, timeout=TIMEOUT) as response:
        block = response.read(BLOCK)
        if response.headers.get_content_type() == "text/html" and b"\0" not in block:
            raise DownloadError("the server sent an HTML page instead of the file")
        if (response.headers.get("Content-Range") or "").startswith(f"bytes {start}-"):
            mode = "ab"
        elif response.status == 206:
            raise DownloadError("the server sent a different part of the file than requested")
        else:
            start, mode = 0, "wb"
        length = response.headers.get("Content-Length")
        total = start + int(length) if length else None
        part.parent.mkdir(parents=True, exist_ok=True)
        bar = tqdm(
            desc=urllib.parse.urlsplit(url).path.rsplit("/", 1)[-1],
            initial=start,
            total=total,
            unit="B",
            unit_scale=True,
            disable=None,  # the bar is shown on terminals only
        )
        with open(part, mode) as file, bar:
            tag_file.write_text(_version_tag(response.headers))
            while block:
                file.write(block)
                bar.update(len(block))
                block = response.read(BLOCK)
            file.flush()
            os.fsync(file.fileno())
    if total is not None and _size(part) != total:
        raise ConnectionError(f"the connection was cut after {_size(part)} of {total} bytes")
    tag_file.unlink()


def _version_tag(headers: Any) -> str:
    """Return the value for `If-Range`. Ignore weak ETags, which allow different bytes."""
    tag = headers.get("ETag") or ""
    return headers.get("Last-Modified") or "" if not tag or tag.startswith("W/") else tag


def _raise_if_permanent(error: Exception, part: Path) -> None:
    """Raise a `DownloadError` if another attempt cannot succeed."""
    if isinstance(error, urllib.error.HTTPError):
        error.close()
        status = f"{error.code} {error.reason}"
        if error.code == 416:  # `part` is too long, so start from scratch
            part.unlink(missing_ok=True)
            _tag_file(part).unlink(missing_ok=True)
        elif error.code in (401, 403):
            raise DownloadError(f"the server refuses access ({status})") from None
        elif error.code in (404, 410):
            raise DownloadError(f"the file does not exist on the server ({status})") from None
        elif error.code not in _RETRY_STATUSES:
            raise DownloadError(f"the server answered {status}") from None
    elif isinstance(getattr(error, "reason", error), ssl.SSLCertVerificationError):
        raise DownloadError("the server's certificate is not trusted (see SSL_CERT_FILE)") from None
    elif isinstance(error, OSError) and getattr(error, "filename", None):  # a local file
        raise DownloadError(f"cannot write {error.filename}: {error.strerror}") from None
    elif isinstance(error, OSError) and error.errno in _WRITE_ERRORS:
        raise DownloadError(f"cannot write {part}: {error.strerror}") from None


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"no connection ({error.reason})"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection was cut"
    return str(error) or type(error).__name__


def _tag_file(part: Path) -> Path:
    return part.with_name(part.name + ".tag")


def _size(path: Path) -> int:
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_size
    return 0
