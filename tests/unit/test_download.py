"""Test downloads: cut connections, changed files, pages instead of files, and digests."""

import hashlib
import os
import random
import sys

import pytest
import requests

from robust_backbones import download, weights, zoo
from robust_backbones.core.errors import UserError
from tests.support.fake_hub import GOOD, HTML, OTHER, POINTER, Page, files

pytestmark = pytest.mark.usefixtures("empty_cache")


def test_a_url_is_downloaded_once(host):
    host.pages["/a/net.pth"] = Page(GOOD)
    path = weights.fetch_weights(f"{host.url}/a/net.pth")
    assert path.read_bytes() == GOOD
    assert path.name.endswith("-net.pth")
    assert weights.fetch_weights(f"{host.url}/a/net.pth") == path
    assert host.count("GET", "/a/net.pth") == 1
    assert weights.digest(f"{host.url}/a/net.pth") == hashlib.sha256(GOOD).hexdigest()
    assert files(path.parent) == [path.name]  # no partial files


def test_a_cut_connection_is_resumed(host):
    host.pages["/net.pth"] = Page(GOOD, cuts=[300_000, 300_000])
    assert weights.fetch_weights(f"{host.url}/net.pth").read_bytes() == GOOD
    assert [r for _, _, r in host.log] == [None, "bytes=300000-", "bytes=600000-"]


def test_a_later_process_resumes_a_download(host, empty_cache):
    page = host.pages["/net.pth"] = Page(GOOD, cuts=[1000, *[0] * 5])
    with pytest.raises(
        UserError, match="cut after 1000 of 1024000 bytes, 5 times. Try again, download"
    ):
        weights.fetch_weights(f"{host.url}/net.pth")
    assert not weights._records()
    page.cuts.clear()
    host.log.clear()
    assert weights.fetch_weights(f"{host.url}/net.pth").read_bytes() == GOOD
    assert [r for _, _, r in host.log] == ["bytes=1000-"]


def test_parts_of_different_versions_are_never_combined(host):
    host.pages["/net.pth"] = Page(GOOD, cuts=[1000, *[0] * 5])
    with pytest.raises(UserError):
        weights.fetch_weights(f"{host.url}/net.pth")
    host.pages["/net.pth"] = Page(OTHER)
    assert weights.fetch_weights(f"{host.url}/net.pth").read_bytes() == OTHER
    assert host.log[-1][2] == "bytes=1000-"


def test_a_server_without_ranges_starts_from_scratch(host):
    host.pages["/net.pth"] = Page(GOOD, cuts=[1000], ranges=False)
    assert weights.fetch_weights(f"{host.url}/net.pth").read_bytes() == GOOD
    host.pages["/never.pth"] = Page(GOOD, cuts=[1000] * 99, ranges=False)
    with pytest.raises(UserError, match="cut after 1000 of 1024000 bytes, 5 times"):
        weights.fetch_weights(f"{host.url}/never.pth")


def test_temporary_server_errors_are_retried(host):
    page = host.pages["/net.pth"] = Page(GOOD, status=503)
    with pytest.raises(UserError, match="the server answered 503 Service Unavailable, 5 times"):
        weights.fetch_weights(f"{host.url}/net.pth")
    assert host.count("GET", "/net.pth") == 5
    page.status = 200
    assert weights.fetch_weights(f"{host.url}/net.pth").read_bytes() == GOOD


BAD_PAGES = {
    "page": (Page(HTML, kind="text/html"), "the server sent an HTML page instead of the file"),
    "page under another type": (Page(HTML), "is an HTML page, not a weight file .removed"),
    "Azure's": (Page(b"<?xml version='1.0'?><Error>"), "is an XML message, not a weight file"),
    "pointer": (Page(POINTER), r"is a Git LFS pointer \(run: git lfs pull\), not a weight file"),
    "empty": (Page(b""), "downloaded file is empty, not a weight file"),
    "404": (Page(b"no", 404), r"the file does not exist on the server \(404 Not Found\)"),
    "403": (Page(b"no", 403), r"the server refuses access \(403 Forbidden\)"),
    "418": (Page(b"no", 418), "the server answered 418"),
}


@pytest.mark.parametrize("case", BAD_PAGES)
def test_files_other_than_weights_are_named_and_removed(host, empty_cache, case):
    page, message = BAD_PAGES[case]
    host.pages["/net.pth"] = page
    with pytest.raises(UserError, match=f"{host.url}/net.pth.*: .*{message}") as caught:
        weights.fetch_weights(f"{host.url}/net.pth?token=secret")
    assert (
        f"/net.pth?1359227d95e1ba80' {host.url}/net.pth) and set ROBUST_BACKBONES_MIRROR=FOLDER."
        in str(caught.value)
    )
    assert "secret" not in str(caught.value)
    assert host.count("GET", "/net.pth") == 1
    assert files(empty_cache) == []


def test_the_digest_of_a_url_is_enforced(host, empty_cache):
    host.pages["/net.pth"] = Page(GOOD)
    digest = hashlib.sha256(OTHER).hexdigest()
    found = hashlib.sha256(GOOD).hexdigest()
    message = (
        f"has SHA-256 {found[:12]}... .1024000 bytes. instead of {digest[:12]}...: it is trunc"
    )
    with pytest.raises(UserError, match=message):
        weights.fetch_weights(f"{host.url}/net.pth#sha256={digest}")
    assert files(empty_cache) == []
    assert weights.fetch_weights(f"{host.url}/net.pth#sha256={found}").read_bytes() == GOOD


def test_a_digest_recorded_at_first_use_is_enforced(host, empty_cache):
    host.pages["/net.pth"] = Page(GOOD)
    weights.fetch_weights(f"{host.url}/net.pth").unlink()
    host.pages["/net.pth"] = Page(OTHER)
    with pytest.raises(
        UserError, match="instead of .* truncated, damaged or another file .removed"
    ):
        weights.fetch_weights(f"{host.url}/net.pth")
    assert files(empty_cache) == []
    host.pages["/net.pth"] = Page(GOOD)
    weights.fetch_weights(f"{host.url}/net.pth")


def test_a_modified_file_in_the_cache_is_downloaded_again(host, caplog):
    host.pages["/net.pth"] = Page(GOOD)
    path = weights.fetch_weights(f"{host.url}/net.pth")
    path.write_bytes(GOOD[:-1])
    assert weights.fetch_weights(f"{host.url}/net.pth").read_bytes() == GOOD
    assert "1023999 bytes) instead of" in caplog.text
    assert "Removed; downloading it again." in caplog.text
    os.utime(path, (1, 1))  # new time, same content: hashed again and used
    assert weights.fetch_weights(f"{host.url}/net.pth") == path
    assert host.count("GET", "/net.pth") == 2


def test_queries_distinguish_files_but_are_not_stored(host, empty_cache):
    host.pages["/get"] = Page(GOOD)
    first, second = (weights.fetch_weights(f"{host.url}/get?id={n}&sig=secret") for n in (1, 2))
    assert first != second
    assert "secret" not in (empty_cache / "digests.json").read_text()


def test_a_redirect_may_not_leave_https(host, monkeypatch):
    with pytest.raises(download.DownloadError, match="'http://example.org' is not allowed"):
        download._Redirects().redirect_request(None, None, 302, "", {}, "http://example.org/x")


# --- Google Drive, by gdown

DRIVE = zoo.find_model("resnet50_linf_eps4_engstrom2019")
ATTACHMENT = {"Content-Disposition": 'attachment; filename="best.pt"'}
LARGE = b"""<html><form id="download-form" action="https://drive.google.com/large">
<input type="hidden" name="confirm" value="t"></form></html>"""
QUOTA = b"""<html><p class="uc-error-subcaption">Too many users have viewed this file.</p></html>"""


@pytest.fixture
def drive(host, monkeypatch):
    """A server in the place of Google Drive."""
    get = requests.Session.get

    def from_host(session, url, **options):
        return get(session, url.replace("https://drive.google.com", host.url), **options)

    monkeypatch.setattr(requests.Session, "get", from_host)
    monkeypatch.setattr(download, "_unreachable", lambda url: None)
    monkeypatch.setattr(random, "uniform", lambda low, high: 0.0)  # gdown's waits
    return host


def test_a_large_file_is_confirmed_and_a_cut_connection_is_resumed(drive, empty_cache):
    drive.pages["/uc"] = Page(LARGE, kind="text/html")
    drive.pages["/large"] = Page(GOOD, cuts=[600_000], headers=ATTACHMENT)
    path = weights.fetch_weights(zoo.SCHEME + DRIVE.name)
    assert path.read_bytes() == GOOD
    assert path.name.endswith(f"-{DRIVE.name}.pt")
    assert weights.fetch_weights(DRIVE.place) == weights.fetch_weights(DRIVE.robustbench) == path
    [_, (_, _, first), (_, _, second)] = drive.log
    assert (first, second[:6]) == (None, "bytes=")
    assert files(path.parent) == [path.name]


def test_errors_of_google_drive_are_shown_with_the_way_out(drive, empty_cache):
    drive.pages["/uc"] = Page(QUOTA, kind="text/html")
    message = (
        f"robust://{DRIVE.name}: Google Drive: Too many users have viewed this file. Try again, "
        f"download it by hand (open {DRIVE.place} in a browser, and save the file as "
        f"'FOLDER/{DRIVE.name}.pt') and set ROBUST_BACKBONES_MIRROR=FOLDER."
    )
    with pytest.raises(UserError) as caught:
        weights.fetch_weights(DRIVE.name)
    assert str(caught.value) == message
    assert files(empty_cache) == []


def test_gdown_is_an_extra(monkeypatch, empty_cache):
    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(
        UserError, match='files on Google Drive: gdown is not installed. Run: pip install "gdown>='
    ):
        weights.fetch_weights(DRIVE.name)
