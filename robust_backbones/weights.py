"""A published model's name, a path or a URL -> a local file with the right content.

Looked for in this order: the cache, the mirror folder `$ROBUST_BACKBONES_MIRROR`, the network.
What comes from the Hugging Face hub lies in the hub's own cache, the rest in `cache_dir()/weights`.
Every digest is either published or recorded at first use, and enforced.
"""

import contextlib
import logging
import os
import re
import urllib.parse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import sha256 as hash_of
from pathlib import Path

from robust_backbones import digests, download, hub, zoo
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import cache_dir, locked, sha256
from robust_backbones.download import DownloadError

CHECKPOINTS = ("checkpoint.pt", "model_final.pth")  # what runs of ours leave in their folder
MIRROR = "ROBUST_BACKBONES_MIRROR"


@dataclass(frozen=True)
class _Source:
    """Where a file comes from.

    Attributes:
        key: what errors and the record of digests call it; holds no secrets of a URL.
        mirrored: its place below the mirror folder.
        url: where it is on the network.
        known: its published SHA-256, or None.
        hub: `(repository, file, revision)` if the hub has it; revision None is the newest.
    """

    key: str
    mirrored: str
    url: str
    known: str | None = None
    hub: tuple[str, str, str | None] | None = None

    @property
    def expected(self) -> str | None:
        """The SHA-256 that its file must have; None before the first use of an unknown one."""
        return self.known or digests.records().get(self.key, {}).get("sha256")


def resolve(source: str | Path) -> Path:
    """The local file of `source`, fetched if need be, its digest checked.

    Args:
        source: a published model (`resnet50_l2_eps3`, `robust://resnet50_l2_eps3`), a path,
            `https://...` (with `#sha256=<digest>` at its end, that is enforced), or
            `hf://OWNER/REPO[@REVISION]/FILE`. A file that is named like a model is `./NAME`.

    Raises:
        UserError: there is no such thing, or it could not be had; names source, fault and fix.
    """
    wanted = _source(os.fspath(source))
    return wanted if isinstance(wanted, Path) else _get(wanted)


def digest(source: str | Path) -> str | None:
    """The SHA-256 that the file of `source` has or must have; None if that is not known yet.

    Raises:
        UserError: `source` is neither a model nor a URL nor a file.
    """
    wanted = _source(os.fspath(source))
    return sha256(wanted) if isinstance(wanted, Path) else wanted.expected


def verify(names: Iterable[str] = ()) -> Iterator[tuple[str, str, str]]:
    """Hash cached files again (all of them without `names`); remove those that are bad.

    Yields:
        `(source, "ok" | "gone" | "BAD", path and fault)`.

    Raises:
        UserError: a name is wrong or was never fetched.
    """
    records = digests.records()
    known = {zoo.SCHEME + model.name: model.sha256 for model in zoo.MODELS.values()}
    sources = [_source(name) for name in names]
    for key in [getattr(source, "key", str(source)) for source in sources] or records:
        if key not in records:
            raise UserError(
                f"{key} is not in the cache; fetch it: python -m robust_backbones.zoo fetch {key}"
            )
        path, expected = Path(records[key]["path"]), known.get(key) or records[key]["sha256"]
        if not path.is_file():
            yield key, "gone", f"{path}: fetched again when needed"
            continue
        with _lock(key):
            fault = digests.inspect(path, expected)[1]
            if fault and not records[key]["mirror"]:
                digests.discard(path)
                fault += "; removed"
        yield key, "BAD" if fault else "ok", f"{path} {fault}".rstrip()


def _source(text: str) -> _Source | Path:
    """What `text` stands for; an existing file as such."""
    scheme = text.split("://", 1)[0] if "://" in text else ""
    if scheme in ("https", "http"):
        return _url_source(text)
    if scheme == "hf":
        return _hub_source(text)
    if scheme not in ("", "robust"):
        raise UserError(f"'{text}': {scheme}:// is not known; use robust://, hf:// or https://.")
    try:
        return _model_source(zoo.find(text))
    except UserError as error:
        path = Path(text).expanduser()
        if path.is_file():
            return path
        if scheme:
            raise
        if path.is_dir():
            within = next((p.name for p in map(path.joinpath, CHECKPOINTS) if p.is_file()), "FILE")
            raise UserError(f"{text} is a folder; give a file in it: {path / within}.") from None
        raise UserError(f"the file '{text}' does not exist, and {error}") from None


def _model_source(model: zoo.Model) -> _Source:
    place = (zoo.HUB_REPO, model.file, zoo.HUB_REVISION)
    # What to fetch by hand: from the publisher, since a mirror of the hub may be what failed.
    url = hub.url(hub.PUBLISHER, *place)
    return _Source(zoo.SCHEME + model.name, model.file, url, model.sha256, place)


def _hub_source(text: str) -> _Source:
    found = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([\w.-]+))?/([^@#?]+)", text)
    if not found or ".." in text.split("/"):
        raise UserError(f"'{text}' is not of the form hf://OWNER/REPO[@REVISION]/FILE.")
    repo, revision, file = found.groups()
    if repo == zoo.HUB_REPO and revision in (None, zoo.HUB_REVISION):
        for model in zoo.MODELS.values():
            if file == model.file:
                return _model_source(model)
    place = (repo, file, revision)
    return _Source(text, f"{repo}/{file}", hub.url(hub.endpoint(), *place), hub=place)


def _url_source(text: str) -> _Source:
    try:
        download.check_url(text)
    except DownloadError as error:
        raise UserError(f"URL refused: {error}; fetch the file by hand, give its path.") from None
    parts = urllib.parse.urlsplit(text)
    # Tokens and signatures live in the query: it tells files apart, but is not to be shown or kept.
    query = f"?{_short(parts.query)}" if parts.query else ""
    key = f"{parts.scheme}://{parts.netloc}{parts.path}{query}"
    known = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", parts.fragment)
    if parts.fragment and not known:
        raise UserError(f"{key}: after # only sha256= and 64 hexadecimal digits are understood.")
    url = urllib.parse.urlunsplit(parts._replace(fragment=""))
    place = f"{parts.netloc}{urllib.parse.unquote(parts.path)}{query}"
    if ".." in place.split("/"):
        raise UserError(f"{key}: '..' is not allowed in the path of a URL.")
    return _Source(key, place, url, known[1].lower() if known else None)


def _short(text: str) -> str:
    return hash_of(text.encode()).hexdigest()[:16]


def _lock(key: str) -> contextlib.AbstractContextManager[None]:
    return locked(cache_dir() / "locks" / f"{_short(key)}.lock")


def _get(wanted: _Source) -> Path:
    """The file in the cache, else fetched; one process at a time for each source."""
    if path := _unchanged(wanted):
        return path
    with _lock(wanted.key):
        return _unchanged(wanted) or _rechecked(wanted) or _mirrored(wanted) or _fetched(wanted)


def _unchanged(wanted: _Source) -> Path | None:
    """The recorded file, if nothing touched it since its digest was taken."""
    entry = digests.records().get(wanted.key)
    if entry is None or wanted.known not in (None, entry["sha256"]):
        return None
    path = Path(entry["path"])
    try:
        return path if digests.stamp(path) == entry["stamp"] else None
    except OSError:  # gone
        return None


def _rechecked(wanted: _Source) -> Path | None:
    """The recorded file, touched since: kept if its content is right, else removed."""
    entry = digests.records().get(wanted.key)
    if entry is None or not (path := Path(entry["path"])).is_file():
        return None
    found, fault = digests.inspect(path, wanted.expected)
    if not fault:
        digests.record(wanted.key, path, found, entry["mirror"])
        return path
    if not entry["mirror"]:
        digests.discard(path)
        logging.getLogger(__name__).warning("%s %s; removed, fetching it again", path, fault)
    return None


def _mirrored(wanted: _Source) -> Path | None:
    """The file in the mirror folder, used where it lies."""
    folder = os.environ.get(MIRROR)
    if not folder:
        return None
    if not (root := Path(folder).expanduser().absolute()).is_dir():
        raise UserError(f"{MIRROR} is '{folder}', which is no folder; correct or unset it.")
    path = root / wanted.mirrored
    if not path.is_file():
        return None
    found, fault = digests.inspect(path, wanted.expected)
    if fault:
        raise UserError(f"{wanted.key}: {path} {fault}; replace it, or unset {MIRROR}.")
    digests.record(wanted.key, path, found, mirror=True)
    return path


def _fetched(wanted: _Source) -> Path:
    """From the network; what is not the right file is removed before anybody can use it."""
    base = re.sub(r"[^\w.-]", "_", wanted.mirrored.rsplit("/", 1)[-1])
    final = cache_dir() / "weights" / f"{_short(wanted.key)}-{base}"
    try:
        if wanted.hub:
            path = hub.fetch(*wanted.hub)
        else:
            path = final.with_name(final.name + ".part")
            download.download(wanted.url, path)
        found, fault = digests.inspect(path, wanted.expected)
        if fault:
            digests.discard(path)
            raise DownloadError(f"what the server sent {fault}; it was removed")
    except DownloadError as error:
        raise UserError(f"{wanted.key}: {error}. {_way_out(wanted)}") from None
    if not wanted.hub:
        os.replace(path, final)
        path = final
    digests.record(wanted.key, path, found, mirror=False)
    return path


def _way_out(wanted: _Source) -> str:
    mirror = "set HF_ENDPOINT to a mirror of the hub, or " if wanted.hub else ""
    url = wanted.url.split("?")[0]
    by_hand = f"curl -L --create-dirs -o 'FOLDER/{wanted.mirrored}' {url}"
    return f"Try again, {mirror}fetch it by hand ({by_hand}) and set {MIRROR}=FOLDER."
