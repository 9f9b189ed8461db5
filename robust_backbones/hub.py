"""Files of the Hugging Face hub: addresses, fetching, and why that failed in our own words."""

import logging
import os
import time
from pathlib import Path

from robust_backbones import download
from robust_backbones.download import DownloadError

PUBLISHER = "https://huggingface.co"


def endpoint() -> str:
    """The hub or, by `$HF_ENDPOINT`, a mirror of it."""
    return os.environ.get("HF_ENDPOINT", PUBLISHER).rstrip("/")


def url(endpoint: str, repo: str, file: str, revision: str | None) -> str:
    """Where a file is; revision None is the newest."""
    return f"{endpoint}/{repo}/resolve/{revision or 'main'}/{file}"


def fetch(repo: str, file: str, revision: str | None) -> Path:
    """The local file, through the hub's client: its cache, mirrors, tokens and offline switch.

    Args:
        revision: None is the newest.

    Raises:
        DownloadError: it could not be had; says why.
    """
    from huggingface_hub import hf_hub_download  # takes half a second to import

    logging.getLogger("huggingface_hub.utils._http").addFilter(_retry_in_words)
    for attempt in range(1, download.ATTEMPTS + 1):
        try:
            return Path(hf_hub_download(repo_id=repo, filename=file, revision=revision))
        except Exception as error:  # its own, its transport's, the system's: by release and fault
            status = getattr(getattr(error, "response", None), "status_code", 0)
            if status < 500 or attempt == download.ATTEMPTS:
                raise DownloadError(_reason(error, repo, file)) from None
            time.sleep(download.BACKOFF * 2 ** (attempt - 1))
    raise AssertionError("the loop returns or raises")


def _retry_in_words(record: logging.LogRecord) -> bool:
    """Of the two lines that the hub's client logs at a retry, one, which says what goes on."""
    text = record.getMessage()
    if text.startswith("Retrying in"):
        record.msg, record.args = f"{endpoint()} does not answer. {text}", ()
    return "thrown while requesting" not in text


def _reason(error: Exception, repo: str, file: str) -> str:
    """Why the hub's client failed, in the words of our errors."""
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    cause = error.__cause__ or error
    text = next(iter(str(cause).splitlines()), "")[:200].rstrip(".") or type(cause).__name__
    if isinstance(error, errors.LocalEntryNotFoundError):
        if constants.HF_HUB_OFFLINE:
            return f"HF_HUB_OFFLINE is set, and {constants.HF_HUB_CACHE} does not hold it"
        if isinstance(cause, errors.FileMetadataError):
            return f"{endpoint()} does not answer as a hub does (a proxy's or login page?)"
        return f"{endpoint()} cannot be reached ({text})"
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return f"there is no {repo}, or it needs a login: set HF_TOKEN ({status})"
    if status == 404:
        return f"{repo} has no {file} at that revision (404)"
    return f"{endpoint()}: {text}"
