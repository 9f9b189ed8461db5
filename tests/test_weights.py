"""Fetching weights: good and bad hosts, digests, mirrors, many processes. No internet needed."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import Page, serve

from robust_backbones import digests, download, weights, zoo
from robust_backbones.errors import UserError
from robust_backbones.files import sha256

ROOT = Path(__file__).resolve().parent.parent
GOOD = bytes(range(256)) * 4000  # about 1 MB
OTHER = GOOD[::-1]
HTML = b"<!DOCTYPE html><html>Virus scan warning</html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:1234\nsize 93600000\n"
UNKNOWN, KNOWN = "resnet18_l2_eps0.03", "resnet18_l2_eps3"  # without and with a published digest


@pytest.fixture
def host():
    with serve() as server:
        yield server


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache, no mirror, no proxy, and quick repetitions."""
    for name in (weights.MIRROR, "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download, "BACKOFF", 0.01)
    return tmp_path / "cache"


def files(folder: Path) -> list[str]:
    """Names of the files that hold weights, or parts of them."""
    found = [p for p in folder.rglob("*") if p.is_file() or p.is_symlink()]
    return [p.name for p in found if p.suffix not in (".lock", ".json") and "locks" not in p.parts]


def hub_page(name: str) -> str:
    return f"/{zoo.HUB_REPO}/resolve/{zoo.HUB_REVISION}/{zoo.find(name).file}"


def zoo_process(*args, **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "robust_backbones.zoo", *args],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fetch(*names, **environment) -> tuple[int, str, str]:
    """`zoo fetch` in a process of its own, since the hub's client reads HF_ENDPOINT at import."""
    process = zoo_process("fetch", *names, **environment)
    out, error = process.communicate(timeout=120)
    return process.returncode, out.strip(), error


# --- a plain web server


def test_a_url_is_fetched_once(host):
    host.pages["/a/net.pth"] = Page(GOOD)
    path = weights.resolve(f"{host.url}/a/net.pth")
    assert path.read_bytes() == GOOD
    assert path.name.endswith("-net.pth")
    assert weights.resolve(f"{host.url}/a/net.pth") == path
    assert host.count("GET", "/a/net.pth") == 1
    assert weights.digest(f"{host.url}/a/net.pth") == hashlib.sha256(GOOD).hexdigest()
    assert files(path.parent) == [path.name]  # no parts left


def test_a_cut_connection_is_resumed(host):
    host.pages["/net.pth"] = Page(GOOD, cuts=[300_000, 300_000])
    assert weights.resolve(f"{host.url}/net.pth").read_bytes() == GOOD
    assert [r for _, _, r in host.log] == [None, "bytes=300000-", "bytes=600000-"]


def test_a_later_process_resumes_too(host, cache):
    page = host.pages["/net.pth"] = Page(GOOD, cuts=[1000, *[0] * 5])
    with pytest.raises(
        UserError, match="cut after 1000 of 1024000 bytes, 5 times. Try again, fetch"
    ):
        weights.resolve(f"{host.url}/net.pth")
    assert not digests.records()
    page.cuts.clear()
    host.log.clear()
    assert weights.resolve(f"{host.url}/net.pth").read_bytes() == GOOD
    assert [r for _, _, r in host.log] == ["bytes=1000-"]


def test_parts_of_two_versions_are_never_joined(host):
    host.pages["/net.pth"] = Page(GOOD, cuts=[1000, *[0] * 5])
    with pytest.raises(UserError):
        weights.resolve(f"{host.url}/net.pth")
    host.pages["/net.pth"] = Page(OTHER)
    assert weights.resolve(f"{host.url}/net.pth").read_bytes() == OTHER
    assert host.log[-1][2] == "bytes=1000-"


def test_a_server_without_ranges_starts_anew(host):
    host.pages["/net.pth"] = Page(GOOD, cuts=[1000], ranges=False)
    assert weights.resolve(f"{host.url}/net.pth").read_bytes() == GOOD
    host.pages["/never.pth"] = Page(GOOD, cuts=[1000] * 99, ranges=False)
    with pytest.raises(UserError, match="cut after 1000 of 1024000 bytes, 5 times"):
        weights.resolve(f"{host.url}/never.pth")


def test_a_passing_fault_is_retried(host):
    page = host.pages["/net.pth"] = Page(GOOD, status=503)
    with pytest.raises(UserError, match="the server says 503 Service Unavailable, 5 times"):
        weights.resolve(f"{host.url}/net.pth")
    assert host.count("GET", "/net.pth") == 5
    page.status = 200
    assert weights.resolve(f"{host.url}/net.pth").read_bytes() == GOOD


BAD_PAGES = {
    "page": (Page(HTML, kind="text/html"), "the server sent an HTML page instead of the file"),
    "page under another type": (Page(HTML), "sent is an HTML page, not a file of weights; it was"),
    "Azure's": (Page(b"<?xml version='1.0'?><Error>"), "sent is an XML message, not a file"),
    "pointer": (Page(POINTER), r"is a Git LFS pointer \(run: git lfs pull\), not a file"),
    "empty": (Page(b""), "sent is empty, not a file of weights"),
    "404": (Page(b"no", 404), r"the link is dead \(404 Not Found\)"),
    "403": (Page(b"no", 403), r"the server refuses access \(403 Forbidden\)"),
    "418": (Page(b"no", 418), "the server says 418"),
}


@pytest.mark.parametrize("case", BAD_PAGES)
def test_what_is_no_file_of_weights_is_named_and_not_kept(host, cache, case):
    page, message = BAD_PAGES[case]
    host.pages["/net.pth"] = page
    with pytest.raises(UserError, match=f"{host.url}/net.pth.*: .*{message}") as caught:
        weights.resolve(f"{host.url}/net.pth?token=secret")
    assert (
        f"/net.pth?1359227d95e1ba80' {host.url}/net.pth) and set ROBUST_BACKBONES_MIRROR=FOLDER."
        in str(caught.value)
    )
    assert "secret" not in str(caught.value)
    assert host.count("GET", "/net.pth") == 1
    assert files(cache) == []


def test_the_digest_of_a_url_is_enforced(host, cache):
    host.pages["/net.pth"] = Page(GOOD)
    digest = hashlib.sha256(OTHER).hexdigest()
    found = hashlib.sha256(GOOD).hexdigest()
    message = (
        f"has SHA-256 {found[:12]}... .1024000 bytes. instead of {digest[:12]}...: it is trunc"
    )
    with pytest.raises(UserError, match=message):
        weights.resolve(f"{host.url}/net.pth#sha256={digest}")
    assert files(cache) == []
    assert weights.resolve(f"{host.url}/net.pth#sha256={found}").read_bytes() == GOOD


def test_a_digest_recorded_at_first_use_is_enforced(host, cache):
    host.pages["/net.pth"] = Page(GOOD)
    weights.resolve(f"{host.url}/net.pth").unlink()
    host.pages["/net.pth"] = Page(OTHER)
    with pytest.raises(
        UserError, match="instead of .* truncated, swapped or damaged; it was removed"
    ):
        weights.resolve(f"{host.url}/net.pth")
    assert files(cache) == []
    host.pages["/net.pth"] = Page(GOOD)
    weights.resolve(f"{host.url}/net.pth")


def test_a_swapped_file_of_the_cache_is_fetched_again(host, caplog):
    host.pages["/net.pth"] = Page(GOOD)
    path = weights.resolve(f"{host.url}/net.pth")
    path.write_bytes(GOOD[:-1])
    assert weights.resolve(f"{host.url}/net.pth").read_bytes() == GOOD
    assert "1023999 bytes) instead of" in caplog.text
    assert "removed, fetching it again" in caplog.text
    os.utime(path, (1, 1))  # touched, with the same content: hashed again, kept
    assert weights.resolve(f"{host.url}/net.pth") == path
    assert host.count("GET", "/net.pth") == 2


def test_queries_tell_files_apart_but_are_not_kept(host, cache):
    host.pages["/get"] = Page(GOOD)
    first, second = (weights.resolve(f"{host.url}/get?id={n}&sig=secret") for n in (1, 2))
    assert first != second
    assert "secret" not in (cache / "digests.json").read_text()


REFUSED = [
    ("http://example.org/net.pth", "'http://example.org' is not allowed, only https:// is; fetch"),
    ("https://me:secret@example.org/net.pth", "URL refused: URLs with a user name or password"),
    ("https:///net.pth", "'https://' is not allowed"),
    ("https://example.org/net.pth#sha256=12", "after # only sha256= and 64 hexadecimal digits"),
    ("https://example.org/../net.pth", "'..' is not allowed in the path"),
    ("s3://bucket/net.pth", "s3:// is not known; use robust://, hf:// or https://"),
    ("hf://net.pth", "'hf://net.pth' is not of the form hf://OWNER/REPO"),
    ("hf://a/b/../c", "is not of the form"),
    ("robust://resnet50_l2_eps2", "no published model is named 'resnet50_l2_eps2'; did you mean"),
    ("resnet50_l2_eps2", "'resnet50_l2_eps2' is no file, and no published model is named"),
    ("none/net.pth", "'none/net.pth' is no file, and no published model"),
]


@pytest.mark.parametrize(("source", "message"), REFUSED)
def test_wrong_sources_are_refused_at_once(source, message):
    with pytest.raises(UserError) as caught:
        weights.resolve(source)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_redirect_may_not_leave_https(host, monkeypatch):
    with pytest.raises(download.DownloadError, match="'http://example.org' is not allowed"):
        download._Redirects().redirect_request(None, None, 302, "", {}, "http://example.org/x")


def test_a_path_stays_a_path(tmp_path, monkeypatch):
    (tmp_path / KNOWN).write_bytes(GOOD)
    assert weights.resolve(tmp_path / KNOWN) == tmp_path / KNOWN
    monkeypatch.chdir(tmp_path)
    assert weights.resolve(f"./{KNOWN}") == Path(KNOWN)
    assert weights.digest(f"./{KNOWN}") == hashlib.sha256(GOOD).hexdigest()


def test_a_broken_record_is_named(cache):
    cache.mkdir()
    (cache / "digests.json").write_text('{"version": 1, "fil')
    with pytest.raises(UserError, match="digests.json is broken .* remove it"):
        weights.resolve(UNKNOWN)


def test_a_place_that_cannot_be_written_is_named(tmp_path, monkeypatch, host):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write .*; set ROBUST_BACKBONES_CACHE to another"):
        weights.resolve(f"{host.url}/net.pth")


# --- a mirror folder


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv(weights.MIRROR, str(folder))
    return folder


def test_mirrored_files_are_used_where_they_lie(mirror):
    (mirror / "resnet18_l2_eps0.03.ckpt").write_bytes(GOOD)
    (mirror / "timm/resnet").mkdir(parents=True)
    (mirror / "timm/resnet/model.safetensors").write_bytes(OTHER)
    (mirror / "example.org/a").mkdir(parents=True)
    (mirror / "example.org/a/net.pth").write_bytes(OTHER)
    assert weights.resolve(UNKNOWN) == mirror / "resnet18_l2_eps0.03.ckpt"
    assert weights.resolve("hf://timm/resnet/model.safetensors").parent.name == "resnet"
    assert weights.resolve("https://example.org/a/net.pth").read_bytes() == OTHER
    url = f"hf://{zoo.HUB_REPO}/resnet18_l2_eps0.03.ckpt"
    assert weights.resolve(url) == weights.resolve(f"robust://{UNKNOWN}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            GOOD,
            "instead of b4315784a1a1...: it is truncated, swapped or damaged; replace it, or unset",
        ),
        (POINTER, r"is a Git LFS pointer \(run: git lfs pull\), not a file of weights; replace it"),
        (HTML, "is an HTML page, not a file of weights; replace it, or unset ROBUST_BACKBONES_M"),
    ],
)
def test_bad_mirrored_files_are_named_and_left_alone(mirror, content, message):
    path = mirror / f"{KNOWN}.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"robust://{KNOWN}: {path} .*{message}"):
        weights.resolve(KNOWN)
    assert path.exists()


def test_a_mirror_that_is_no_folder(monkeypatch):
    monkeypatch.setenv(weights.MIRROR, "/none")
    with pytest.raises(UserError, match="ROBUST_BACKBONES_MIRROR is '/none', which is no folder"):
        weights.resolve(KNOWN)


def test_verify_reads_every_file_again(mirror, host, cache, capsys):
    from robust_backbones import zoo_command

    (mirror / f"{UNKNOWN}.ckpt").write_bytes(GOOD)
    weights.resolve(UNKNOWN)
    for name in ("a", "b"):
        host.pages[f"/{name}"] = Page(GOOD)
        weights.resolve(f"{host.url}/{name}")
    zoo_command.main(["verify"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["ok"] * 3
    path = weights.resolve(f"{host.url}/a")
    before = path.stat().st_mtime_ns
    path.write_bytes(OTHER)  # as bad memory would: same size and time
    os.utime(path, ns=(before, before))
    weights.resolve(f"{host.url}/b").unlink()
    with pytest.raises(SystemExit) as stop:
        zoo_command.main(["verify"])
    assert stop.value.code == 2
    out, error = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["ok", "BAD", "gone"]
    assert error == "error: 1 cached file was bad; see above.\n"
    assert not path.exists()
    zoo_command.main(["verify", UNKNOWN])


# --- the hub, through its own client


def test_the_hub_gives_a_model(host, cache, tmp_path):
    page = hub_page(UNKNOWN)
    body = GOOD * 25  # the client keeps what has come in steps of 10 MiB
    host.pages[page] = Page(body, cuts=[15 << 20])
    code, out, error = fetch(UNKNOWN, HF_ENDPOINT=host.url)
    assert (code, "Traceback" in error) == (0, False), error
    assert sha256(out) == hashlib.sha256(body).hexdigest()
    assert Path(out).is_relative_to(tmp_path / "hf")
    ranges = [r for method, path, r in host.log if (method, path) == ("GET", page)]
    assert ranges == [None, f"bytes={10 << 20}-"]
    record = json.loads((cache / "digests.json").read_text())["files"][f"robust://{UNKNOWN}"]
    assert record["sha256"] == hashlib.sha256(body).hexdigest()
    host.log.clear()
    assert weights.resolve(UNKNOWN) == Path(out)  # offline, without the hub's client
    assert not host.log


BAD_HUBS = {
    "wrong digest": (Page(GOOD), f"robust://{KNOWN}: what the server sent has SHA-256 "),
    "page as file": (Page(HTML), "sent is an HTML page, not a file of weights; it was removed"),
    "not a hub": (Page(HTML, kind="text/html", hub=False), "does not answer as a hub does"),
    "404": (None, f"{zoo.HUB_REPO} has no {KNOWN}.ckpt at that revision (404)"),
    "401": (Page(b"", 401), f"there is no {zoo.HUB_REPO}, or it needs a login: set HF_TOKEN (401)"),
}


def test_bad_hubs_are_named_and_nothing_is_kept(tmp_path):
    with serve() as host:
        running = {}
        for number, (case, (page, _)) in enumerate(BAD_HUBS.items()):
            if page:
                host.pages[f"/{number}{hub_page(KNOWN)}"] = page
            home, endpoint = tmp_path / f"hf{number}", f"{host.url}/{number}"
            places = {"HF_HOME": home, "ROBUST_BACKBONES_CACHE": tmp_path / f"cache{number}"}
            texts = {key: str(path) for key, path in places.items()}
            running[case] = zoo_process("fetch", KNOWN, HF_ENDPOINT=endpoint, **texts)
        for number, (case, process) in enumerate(running.items()):
            _, error = process.communicate(timeout=120)
            lines = [line for line in error.splitlines() if line.startswith("error: ")]
            assert (process.returncode, len(lines)) == (2, 1), error
            assert BAD_HUBS[case][1] in lines[0]
            assert "Try again, set HF_ENDPOINT to a mirror of the hub, or fetch it by" in lines[0]
            assert (
                f"-o 'FOLDER/{KNOWN}.ckpt' https://huggingface.co{hub_page(KNOWN)}) and" in lines[0]
            )
            assert "Traceback" not in error
            assert [f for f in files(tmp_path / f"hf{number}") if "CACHEDIR" not in f] == []


def test_a_passing_fault_of_the_hub_is_retried(tmp_path, monkeypatch):
    class Busy(OSError):
        class response:
            status_code = 503

    def download_third_time(**kwargs):
        tries.append(kwargs)
        if len(tries) < 3:
            raise Busy("503 Service Unavailable.\nand more")
        return str(tmp_path / "net")

    tries = []
    (tmp_path / "net").write_bytes(GOOD)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download_third_time)
    assert weights.resolve(UNKNOWN) == tmp_path / "net"
    asked = {"repo_id": zoo.HUB_REPO, "filename": f"{UNKNOWN}.ckpt", "revision": zoo.HUB_REVISION}
    assert tries == [asked] * 3


def test_offline_without_the_file(tmp_path):
    code, _, error = fetch(KNOWN, HF_HUB_OFFLINE="1")
    assert code == 2
    assert f"HF_HUB_OFFLINE is set, and {tmp_path / 'hf/hub'} does not hold it" in error


def test_any_repository_of_the_hub(host):
    host.pages["/me/nets/resolve/v2/a/b.safetensors"] = Page(GOOD)
    code, out, error = fetch("hf://me/nets@v2/a/b.safetensors", HF_ENDPOINT=host.url)
    assert code == 0, error
    assert Path(out).read_bytes() == GOOD


@pytest.mark.parametrize("way", ["hub", "url"])
def test_twenty_processes_download_once(host, way):
    page = hub_page(UNKNOWN) if way == "hub" else "/net.pth"
    host.pages[page] = Page(GOOD, pause=2.0)  # slow: all others have come by then
    source = UNKNOWN if way == "hub" else f"{host.url}/net.pth"
    processes = [zoo_process("fetch", source, HF_ENDPOINT=host.url) for _ in range(20)]
    results = [(*p.communicate(timeout=120), p.returncode) for p in processes]
    assert {code for _, _, code in results} == {0}, results
    assert len({out for out, _, _ in results}) == 1
    assert host.count("GET", page) == 1
