"""Resolve a model name, path or URL to a verified local file.

`fetch_weights` searches the cache, then the mirror folder `$ROBUST_BACKBONES_MIRROR`, then the
network. Downloads from the Hugging Face Hub are stored in the Hub's own cache. Other downloads are
stored in `cache_dir()/weights`.

Every file must match its published digest. A file without a published digest must match the digest
that was recorded at its first use.
"""

import contextlib
import hashlib
import json
import logging
import os
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from robust_backbones import download, sources, zoo
from robust_backbones.core.errors import UserError
from robust_backbones.core.file_kinds import HEAD, SUFFIXES, foreign_kind
from robust_backbones.core.files import atomic, cache_dir, locked, sha256
from robust_backbones.core.paths import expand
from robust_backbones.download import DownloadError

CHECKPOINTS = ("checkpoint.pt", "model_final.pth")  # weight files in the output folders of runs
# Usual files of a Hub repository with one model: by timm and transformers, and by open_clip.
HUB_FILES = ("model.safetensors", "open_clip_model.safetensors", "open_clip_pytorch_model.bin")
MIRROR = "ROBUST_BACKBONES_MIRROR"
_RECORDS_VERSION = 1


@dataclass(frozen=True)
class _Remote:
    """A file on the network.

    Attributes:
        key: name of the file in error messages and digest records, without secrets from its URL.
        mirror_path: path of the file inside the mirror folder.
        url: URL of the file, for downloads.
        published: published SHA-256 or its first digits; None if unknown.
        hub: `(repository, file, revision)` on the Hugging Face Hub; None for other servers.
            A revision of None is the newest commit.
    """

    key: str
    mirror_path: str
    url: str
    published: str | None = None
    hub: tuple[str, str, str | None] | None = None

    @property
    def expected(self) -> str | None:
        """SHA-256 that the file must have; None if no digest is published or recorded."""
        record = _records().get(self.key)
        return self.published or (record.sha256 if record else None)


@dataclass(frozen=True)
class _Record:
    """Record of a file that was downloaded or found in the mirror folder.

    Attributes:
        sha256: SHA-256 of the file.
        path: local path of the file.
        stamp: `[size in bytes, modification time in ns]`. The file is hashed again only if
            the stamp has changed.
        mirror: whether the file is in the user's mirror folder, where files are never removed.
    """

    sha256: str
    path: str
    stamp: list[int]
    mirror: bool


def fetch_weights(source: str | Path) -> Path:
    """Return the path of a local file for `source`.

    Remote files are downloaded if necessary, and their digests are checked.

    Args:
        source: published model (`resnet50_l2_eps3`, `robust://resnet50_l2_eps3`), weights of a
            library (`timm://NAME.TAG`, `torchvision://NAME.TAG`), path, URL (`https://...`, with an
            optional `#sha256=<digest>` that the file must match), or
            `hf://OWNER/REPO[@REVISION][/FILE]`. Write `./NAME` for a file named like a model.

    Raises:
        UserError: the source does not exist or cannot be downloaded.
    """
    found = _parse(os.fspath(source))
    if isinstance(found, Path):
        return found
    if path := _unchanged(found):
        return path
    with _lock(found.key):
        return _unchanged(found) or _rehashed(found) or _mirrored(found) or _downloaded(found)


def check_source(source: str | Path) -> None:
    """Check that `source` has a valid form and that its model or file exists, without a download.

    Raises:
        UserError: `source` is not a model, a URL or a file.
    """
    _parse(os.fspath(source))


def digest(source: str | Path) -> str | None:
    """Return the SHA-256 that the file of `source` has or must have, or None if unknown.

    Raises:
        UserError: `source` is not a model, a URL or a file.
    """
    found = _parse(os.fspath(source))
    return sha256(found) if isinstance(found, Path) else found.expected


def verify(names: Iterable[str] = ()) -> Iterator[tuple[str, str, str]]:
    """Hash cached files again, and remove damaged files unless they are in the mirror folder.

    Args:
        names: sources to verify; all cached files if empty.

    Yields:
        `(source, "ok" | "gone" | "BAD", text)`. The text has the path and, if the file is missing
        or damaged, the fault.

    Raises:
        UserError: a name is invalid or was never fetched.
    """
    records = _records()
    published = {zoo.SCHEME + model.name: model.sha256 for model in zoo.MODELS.values()}
    sources = [_parse(name) for name in names]
    keys = [source.key if isinstance(source, _Remote) else str(source) for source in sources]
    for key in keys or records:
        if key not in records:
            raise UserError(
                f"{key} is not in the cache. Fetch it with: robust-backbones zoo fetch {key}"
            )
        record = records[key]
        path = Path(record.path)
        if not path.is_file():
            yield key, "gone", f"{path}: will be fetched again when needed"
            continue
        with _lock(key):
            fault = _inspect(path, published.get(key) or record.sha256)[1]
            if fault and not record.mirror:
                _discard(path)
                fault += ". Removed."
        yield key, "BAD" if fault else "ok", f"{path} {fault}".rstrip()


def _parse(text: str) -> _Remote | Path:
    """Parse a source. Return the path of an existing local file, or else a remote file."""
    scheme = text.split("://", 1)[0] if "://" in text else ""
    if scheme and (model := zoo.known(text)):
        return _published(model)
    if scheme in ("https", "http"):
        return _parse_url(text)
    if scheme == "hf":
        return _parse_hub(text)
    if scheme in sources.SCHEMES:
        return _parse_library(text)
    if scheme == "file":
        raise UserError(
            f"'{text}': file:// is not supported. Give the path: {text.removeprefix('file://')}"
        )
    if scheme not in ("", "robust"):
        raise UserError(
            f"'{text}': {scheme}:// is not supported. Choose from robust://, timm://, "
            f"torchvision://, hf://, https://.{_of_library(text)}"
        )
    try:
        model = zoo.find_model(text)
    except UserError as error:
        path = Path(expand(text))
        if path.is_file():
            return path
        if scheme:
            raise
        if path.is_dir():
            inside = next((p.name for p in map(path.joinpath, CHECKPOINTS) if p.is_file()), "FILE")
            raise UserError(
                f"{text} is a folder. Give a file in it, such as {path / inside}."
            ) from None
        if path.suffix in SUFFIXES:
            raise UserError(f"the file '{text}' does not exist. Check the path.") from None
        absent = f"the file '{text}' does not exist, and {error}"
        hint = _of_library(text)
        raise UserError(f"{absent}.{hint}" if hint else absent) from None
    return _published(model)


def _of_library(text: str) -> str:
    """Return the fix for a model name of another library, or an empty string."""
    if found := re.fullmatch(r"(?:hf[-_]hub:|(?=timm/))([\w.-]+/[\w.-]+)", text):
        return f" For a model on the Hugging Face Hub, use hf://{found[1]}."
    if found := re.fullmatch(r"(timm|torchvision)[:/]+([\w.-]+)", text):
        return f" For {found[1]} weights, use {found[1]}://{found[2]}."
    if re.fullmatch(r"(?!.*_eps)[\w.]+", text):
        return (
            " For weights from another library, use timm://NAME.TAG, or torchvision://NAME.TAG "
            "such as torchvision://resnet50.IMAGENET1K_V2."
        )
    return ""


def _parse_library(text: str) -> _Remote:
    found = sources.of_library(text)
    if found.hub:
        return _parse_hub(f"hf://{'/'.join(found.hub)}")
    return replace(_parse_url(found.url), published=found.digest or None)


def _published(model: zoo.PublishedModel) -> _Remote:
    model.require_usable()
    place = _hub_place(model.place) if model.place.startswith("hf://") else None
    # For manual downloads, print the publisher's URL: the mirror in HF_ENDPOINT may have failed.
    url = download.hub_url(download.PUBLISHER, *place) if place else model.place
    return _Remote(zoo.SCHEME + model.name, model.file, url, model.sha256, place)


def _parse_hub(text: str) -> _Remote:
    place = _hub_place(text)
    url = download.hub_url(download.hub_endpoint(), *place)
    return _Remote(text, f"{place[0]}/{place[1]}", url, hub=place)


def _hub_place(text: str) -> tuple[str, str, str | None]:
    found = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w.-]+))?(?:/([^@#?]+))?", text)
    if not found or ".." in text.split("/"):
        raise UserError(f"'{text}' does not have the form hf://OWNER/REPO[@REVISION][/FILE].")
    return found[1], found[3] or HUB_FILES[0], found[2]


def _parse_url(text: str) -> _Remote:
    try:
        download.check_url(text)
    except DownloadError as error:
        raise UserError(
            f"URL refused: {error}. Download the file by hand and give its path."
        ) from None
    parts = urllib.parse.urlsplit(text)
    # The query distinguishes files but may contain a token, so only its hash is shown and stored.
    query = f"?{_short_hash(parts.query)}" if parts.query else ""
    key = f"{parts.scheme}://{parts.netloc}{parts.path}{query}"
    published = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", parts.fragment)
    if parts.fragment and not published:
        raise UserError(f"{key}: after #, only sha256= and 64 hexadecimal digits are allowed.")
    url = urllib.parse.urlunsplit(parts._replace(fragment=""))
    place = f"{parts.netloc}{urllib.parse.unquote(parts.path)}{query}"
    if ".." in place.split("/"):
        raise UserError(f"{key}: '..' is not allowed in the path of a URL.")
    return _Remote(key, place, url, published[1].lower() if published else None)


def _short_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _lock(key: str) -> contextlib.AbstractContextManager[None]:
    """Return a lock that lets only one process at a time download or check a file."""
    return locked(cache_dir() / "locks" / f"{_short_hash(key)}.lock")


def _unchanged(remote: _Remote) -> Path | None:
    """Return the recorded file if its size and modification time are unchanged, else None."""
    record = _records().get(remote.key)
    if record is None or not record.sha256.startswith(remote.published or ""):
        return None
    path = Path(record.path)
    try:
        return path if _stamp(path) == record.stamp else None
    except OSError:  # the file was removed
        return None


def _rehashed(remote: _Remote) -> Path | None:
    """Hash the recorded file again, and return its path if the digest is correct.

    A file with a wrong digest is removed, unless it is in the mirror folder.
    """
    record = _records().get(remote.key)
    if record is None or not (path := Path(record.path)).is_file():
        return None
    found, fault = _inspect(path, remote.expected)
    if not fault:
        _add_record(remote.key, path, found, record.mirror)
        return path
    if not record.mirror:
        _discard(path)
        logging.getLogger(__name__).warning("%s %s. Removed; downloading it again.", path, fault)
    return None


def _mirrored(remote: _Remote) -> Path | None:
    """Return the path of the file in the mirror folder, or None if the file is not there."""
    if (path := _in_mirror(remote)) is None or not path.is_file():
        return None
    found, fault = _inspect(path, remote.expected)
    if fault:
        raise UserError(f"{remote.key}: {path} {fault}. Replace it, or unset {MIRROR}.")
    _add_record(remote.key, path, found, mirror=True)
    return path


def _downloaded(remote: _Remote) -> Path:
    """Download the file. Remove a file with a wrong digest before any process can use it."""
    name = re.sub(r"[^\w.-]", "_", remote.mirror_path.rsplit("/", 1)[-1])
    target = cache_dir() / "weights" / f"{_short_hash(remote.key)}-{name}"
    try:
        if remote.hub:
            path = _from_hub(remote.key, *remote.hub)
            # other people's repositories describe their network
            for config in sources.HUB_CONFIGS if remote.key.startswith("hf://") else ():
                with contextlib.suppress(DownloadError):
                    download.from_hub(remote.hub[0], config, remote.hub[2])
        else:
            path = target.with_name(target.name + ".part")
            fetch = download.from_drive if download.on_drive(remote.url) else download.from_url
            fetch(remote.url, path)
        found, fault = _inspect(path, remote.expected)
        if fault:
            _discard(path)
            raise DownloadError(f"the downloaded file {fault} (removed)")
    except DownloadError as error:
        raise UserError(_failure(remote, error)) from None
    if not remote.hub:
        os.replace(path, target)
        path = target
    _add_record(remote.key, path, found, mirror=False)
    return path


def _from_hub(key: str, repo: str, file: str, revision: str | None) -> Path:
    """Download a file, or the first usual file that the repository has if the user gave no file."""
    given = key.endswith(f"/{file}") or not key.startswith("hf://")
    for name in () if given else HUB_FILES:
        with contextlib.suppress(download.MissingFile):
            return download.from_hub(repo, name, revision)
    return download.from_hub(repo, file, revision)


def _failure(remote: _Remote, reason: object) -> str:
    """Return the message about a download that failed: places, reason and fixes."""
    path = _in_mirror(remote)
    missing = f"{path} ({MIRROR}) does not exist, and " if path else ""
    hub = "set HF_ENDPOINT to a mirror of the Hub, or " if remote.hub else ""
    target = path or f"FOLDER/{remote.mirror_path}"
    by_hand = f"curl -L --create-dirs -o '{target}' {remote.url.split('?')[0]}"
    if download.on_drive(remote.url):
        by_hand = f"open {remote.url} in a browser, and save the file as '{target}'"
    mirror = "" if path else f" and set {MIRROR}=FOLDER"
    return (
        f"{remote.key}: {missing}{reason}. Try again, {hub}download it by hand ({by_hand}){mirror}."
    )


def _in_mirror(remote: _Remote) -> Path | None:
    """Return the path of the file in the mirror folder, or None if no mirror is set."""
    folder = os.environ.get(MIRROR)
    if not folder:
        return None
    if not (root := Path(expand(folder)).absolute()).is_dir():
        raise UserError(f"{MIRROR} is '{folder}', which is not a folder. Correct or unset it.")
    return root / remote.mirror_path


def _records_file() -> Path:
    return cache_dir() / "digests.json"


def _records() -> dict[str, _Record]:
    """Read all digest records from `{"version": 1, "files": {source: fields of a _Record}}`.

    Raises:
        UserError: the file is damaged, from another release, or cannot be read.
    """
    path = _records_file()
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
        if contents["version"] != _RECORDS_VERSION:
            raise KeyError
        return {source: _Record(**entry) for source, entry in contents["files"].items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except PermissionError:
        raise UserError(f"{path} cannot be read: permission denied.") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(
            f"{path} is damaged or from another release. Remove it. Digests are then recorded "
            "again."
        ) from None


def _add_record(source: str, path: Path, digest: str, mirror: bool) -> None:
    record = _Record(digest, str(path), _stamp(path), mirror)
    with locked(_records_file().with_name("digests.lock")):
        files = {key: asdict(entry) for key, entry in (_records() | {source: record}).items()}
        with atomic(_records_file()) as temporary:
            text = json.dumps({"version": _RECORDS_VERSION, "files": files}, indent=1)
            temporary.write_text(text, encoding="utf-8")


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _inspect(path: Path, expected: str | None) -> tuple[str, str]:
    """Hash a file. Check its digest, and detect other kinds of files, such as an HTML page.

    Args:
        path: file to hash.
        expected: required SHA-256 or its first digits; None if unknown.

    Returns:
        `(SHA-256, fault)`. The fault completes the sentence "the file ...". The fault is empty if
        the file is valid.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
        found = sha256(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}.") from None
    if expected is not None and found.startswith(expected):
        return found, ""
    if kind := foreign_kind(head)[0]:
        return found, f"is {kind}, not a weight file"
    if expected is not None:
        size = path.stat().st_size
        return found, (
            f"has SHA-256 {found[:12]}... ({size} bytes) instead of {expected[:12]}...: it is "
            "truncated, damaged or another file"
        )
    return found, ""


def _discard(path: Path) -> None:
    """Remove a file and the targets of its links, because the Hub's client would reuse them."""
    while path.is_symlink():
        target = path.parent / os.readlink(path)
        path.unlink()
        path = target
    path.unlink(missing_ok=True)


def short_name(weights: str) -> str:
    """Return the default name of a network, which is its file name without the suffix.

    Args:
        weights: path, published name or URL of the weights.
    """
    *above, name = weights.removeprefix(zoo.SCHEME).rstrip("/").split("/")
    short = re.sub(r"\.(pt|pth|ckpt|pkl|safetensors)$", "", name)
    # All pretraining runs save checkpoint.pt, so use the name of the folder.
    return above[-1] if short == "checkpoint" and above else short
