"""Test weights by name, path and URL: mirror folders, the Hub, many processes. No network."""

import hashlib
import json
import logging
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from robust_backbones import download, weights, zoo
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import sha256
from tests.support import ROOT
from tests.support.fake_hub import GOOD, HTML, OTHER, POINTER, Page, files, hub_page, serve

pytestmark = pytest.mark.usefixtures("empty_cache")

UNKNOWN, KNOWN = "resnet18_l2_eps0.03", "resnet18_l2_eps3"  # without and with a published digest


HUB_REPO, HUB_REVISION = re.fullmatch(r"hf://(.+)@(\w+)/", zoo.SOURCES[zoo.PAPER].files).groups()


def page_of(name: str) -> str:
    return hub_page(zoo.find_model(name).place)


def zoo_process(*args, **environment) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "robust_backbones", "zoo", *args],
        cwd=ROOT,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def fetch(*names, **environment) -> tuple[int, str, str]:
    """Run `zoo fetch` in its own process: the Hub's client reads HF_ENDPOINT at import."""
    process = zoo_process("fetch", *names, **environment)
    out, error = process.communicate(timeout=120)
    return process.returncode, out.strip(), error


REFUSED = [
    ("http://example.org/net.pth", "'http://example.org' is not allowed, only https:// is. Down"),
    ("https://me:secret@example.org/net.pth", "URL refused: URLs with a user name or password"),
    ("https:///net.pth", "'https://' is not allowed"),
    ("https://example.org/net.pth#sha256=12", "after #, only sha256= and 64 hexadecimal digits"),
    ("https://example.org/../net.pth", "'..' is not allowed in the path"),
    ("file:///data/a.pth", "file:// is not supported. Give the path: /data/a.pth"),
    (
        "s3://bucket/net.pth",
        "s3:// is not supported. Choose from robust://, timm://, torchvision://, hf:",
    ),
    ("hf://net.pth", "'hf://net.pth' does not have the form hf://OWNER/REPO"),
    ("hf://a/b/../c", "does not have the form"),
    ("robust://resnet50_l2_eps2", "no published model is named 'resnet50_l2_eps2'. Did you mean"),
    ("resnet50_l2_eps2", "file 'resnet50_l2_eps2' does not exist, and no published model is named"),
    ("resnet50", "no published model is named 'resnet50'. Did you mean"),
    (
        "convnext_tiny",
        "For weights from another library, use timm://NAME.TAG, or torchvision://NAME.TAG",
    ),
    ("timm:vit_base_patch16_224", "For timm weights, use timm://vit_base_patch16_224"),
    ("torchvision://resnet50", "no weights '' for resnet50. Choose from torchvision://resnet50."),
    ("timm/resnet50.a1_in1k", "on the Hugging Face Hub, use hf://timm/resnet50.a1_in1k."),
    ("hf-hub:timm/resnet50.a1_in1k", "hf://timm/resnet50.a1_in1k."),
    ("hf-hub:me/net", "For a model on the Hugging Face Hub, use hf://me/net."),
    ("none/net.pth", "file 'none/net.pth' does not exist. Check the path"),
]


@pytest.mark.parametrize(("source", "message"), REFUSED)
def test_wrong_sources_are_refused_at_once(source, message):
    with pytest.raises(UserError) as caught:
        weights.fetch_weights(source)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["checkpoint.pt", "model_final.pth", None])
def test_a_folder_instead_of_a_file(tmp_path, name):
    if name:
        (tmp_path / name).touch()
    with pytest.raises(UserError, match=f"is a folder. Give a file in it, .*/{name or 'FILE'}"):
        weights.fetch_weights(tmp_path)


def test_existing_paths_are_returned(tmp_path, monkeypatch):
    (tmp_path / KNOWN).write_bytes(GOOD)
    assert weights.fetch_weights(tmp_path / KNOWN) == tmp_path / KNOWN
    monkeypatch.chdir(tmp_path)
    assert weights.fetch_weights(f"./{KNOWN}") == Path(KNOWN)
    assert weights.digest(f"./{KNOWN}") == hashlib.sha256(GOOD).hexdigest()


def test_damaged_records_are_named(empty_cache):
    empty_cache.mkdir()
    (empty_cache / "digests.json").write_text('{"version": 1, "fil')
    with pytest.raises(UserError, match="digests.json is damaged .* Remove it"):
        weights.fetch_weights(UNKNOWN)


def test_an_unwritable_cache_is_named(tmp_path, monkeypatch, host):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="cannot write .*. Set ROBUST_BACKBONES_CACHE to another"):
        weights.fetch_weights(f"{host.url}/net.pth")


# --- a mirror folder


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    folder = tmp_path / "mirror"
    folder.mkdir()
    monkeypatch.setenv(weights.MIRROR, str(folder))
    return folder


def test_mirrored_files_are_used_in_place(mirror):
    (mirror / "resnet18_l2_eps0.03.ckpt").write_bytes(GOOD)
    (mirror / "timm/resnet").mkdir(parents=True)
    (mirror / "timm/resnet/model.safetensors").write_bytes(OTHER)
    (mirror / "example.org/a").mkdir(parents=True)
    (mirror / "example.org/a/net.pth").write_bytes(OTHER)
    assert weights.fetch_weights(UNKNOWN) == mirror / "resnet18_l2_eps0.03.ckpt"
    assert weights.fetch_weights("hf://timm/resnet/model.safetensors").parent.name == "resnet"
    assert weights.fetch_weights("https://example.org/a/net.pth").read_bytes() == OTHER
    url = f"hf://{HUB_REPO}/resnet18_l2_eps0.03.ckpt"
    assert weights.fetch_weights(url) == weights.fetch_weights(f"robust://{UNKNOWN}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD, "instead of b4315784a1a1...: it is truncated, damaged .*. Replace it, or un"),
        (POINTER, r"is a Git LFS pointer \(run: git lfs pull\), not a weight file. Replace it"),
        (HTML, "is an HTML page, not a weight file. Replace it, or unset ROBUST_BACKBONES_M"),
    ],
)
def test_bad_mirrored_files_are_named_and_not_removed(mirror, content, message):
    path = mirror / f"{KNOWN}.ckpt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"robust://{KNOWN}: {path} .*{message}"):
        weights.fetch_weights(KNOWN)
    assert path.exists()


def _no_name(*args):
    raise socket.gaierror(-2, "Name or service not known")


@pytest.mark.parametrize(
    ("source", "place", "url"),
    [
        (KNOWN, f"{KNOWN}.ckpt", f"https://huggingface.co{page_of(KNOWN)}"),
        (
            "hf://me/nets/a.pth",
            "me/nets/a.pth",
            "https://huggingface.co/me/nets/resolve/main/a.pth",
        ),
        (
            "https://example.org/a/net.pth?k=secret",
            "example.org/a/net.pth?",
            "example.org/a/net.pth)",
        ),
    ],
)
def test_a_mirror_without_the_file_says_where_it_looked(mirror, monkeypatch, source, place, url):
    monkeypatch.setattr(download.socket, "create_connection", _no_name)
    monkeypatch.setattr(download.time, "sleep", None)  # no retries
    with pytest.raises(UserError) as caught:
        weights.fetch_weights(source)
    said = str(caught.value)
    assert f"{mirror}/{place}" in said and "(ROBUST_BACKBONES_MIRROR) does not exist, and" in said
    assert "cannot be reached (Name or service not known). Try again" in said
    assert f"-o '{mirror}/{place}" in said and url in said and "secret" not in said


def _refused(*args):
    raise ConnectionRefusedError(111, "Connection refused")


@pytest.mark.parametrize("source", [KNOWN, "hf://me/nets/a.pth", "https://example.org/net.pth"])
@pytest.mark.parametrize("fault", [_no_name, _refused])
def test_no_connection_fails_at_once(monkeypatch, source, fault):
    monkeypatch.setattr(download.socket, "create_connection", fault)
    monkeypatch.setattr(download.time, "sleep", None)  # no retries
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    message = "cannot be reached [(](Name or service not known|Connection refused)[)]. Try again, "
    with pytest.raises(UserError, match=message):
        weights.fetch_weights(source)


def test_a_mirror_that_is_not_a_folder(monkeypatch):
    monkeypatch.setenv(weights.MIRROR, "/none")
    with pytest.raises(UserError, match="ROBUST_BACKBONES_MIRROR is '/none', which is not a fo"):
        weights.fetch_weights(KNOWN)


def test_verify_hashes_every_file_again(mirror, host, empty_cache, capsys):
    from robust_backbones.commands.zoo import main

    (mirror / f"{UNKNOWN}.ckpt").write_bytes(GOOD)
    weights.fetch_weights(UNKNOWN)
    for name in ("a", "b"):
        host.pages[f"/{name}"] = Page(GOOD)
        weights.fetch_weights(f"{host.url}/{name}")
    main(["verify"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["ok"] * 3
    path = weights.fetch_weights(f"{host.url}/a")
    before = path.stat().st_mtime_ns
    path.write_bytes(OTHER)  # damage with the same size and time
    os.utime(path, ns=(before, before))
    weights.fetch_weights(f"{host.url}/b").unlink()
    with pytest.raises(SystemExit) as stop:
        main(["verify"])
    assert stop.value.code == 2
    out, error = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["ok", "BAD", "gone"]
    assert error == "error: damaged files in the cache: 1 (see above).\n"
    assert not path.exists()
    main(["verify", UNKNOWN])


# --- the Hub


def test_a_model_is_downloaded_from_the_hub(host, empty_cache, tmp_path):
    page = page_of(UNKNOWN)
    body = GOOD * 25  # the client saves blocks of 10 MiB
    host.pages[page] = Page(body, cuts=[15 << 20])
    code, out, error = fetch(UNKNOWN, HF_ENDPOINT=host.url)
    assert (code, "Traceback" in error) == (0, False), error
    assert sha256(out) == hashlib.sha256(body).hexdigest()
    assert Path(out).is_relative_to(tmp_path / "hf")
    ranges = [r for method, path, r in host.log if (method, path) == ("GET", page)]
    assert ranges == [None, f"bytes={10 << 20}-"]
    record = json.loads((empty_cache / "digests.json").read_text())["files"][f"robust://{UNKNOWN}"]
    assert record["sha256"] == hashlib.sha256(body).hexdigest()
    host.log.clear()
    assert weights.fetch_weights(UNKNOWN) == Path(out)  # offline, without the Hub's client
    assert not host.log


BAD_HUBS = {
    "wrong digest": (Page(GOOD), f"robust://{KNOWN}: the downloaded file has SHA-256 "),
    "page as file": (Page(HTML), "file is an HTML page, not a weight file (removed)"),
    "not a hub": (Page(HTML, kind="text/html", hub=False), "does not answer like a Hub"),
    "404": (None, f"{HUB_REPO} has no {KNOWN}.ckpt at that revision (404)"),
    "401": (Page(b"", 401), f"{HUB_REPO} does not exist, or it requires a login: set HF_"),
}


def test_hub_errors_are_named_and_leave_no_files(tmp_path):
    with serve() as host:
        running = {}
        for number, (case, (page, _)) in enumerate(BAD_HUBS.items()):
            if page:
                host.pages[f"/{number}{page_of(KNOWN)}"] = page
            home, endpoint = tmp_path / f"hf{number}", f"{host.url}/{number}"
            places = {"HF_HOME": home, "ROBUST_BACKBONES_CACHE": tmp_path / f"cache{number}"}
            texts = {key: str(path) for key, path in places.items()}
            running[case] = zoo_process("fetch", KNOWN, HF_ENDPOINT=endpoint, **texts)
        for number, (case, process) in enumerate(running.items()):
            _, error = process.communicate(timeout=120)
            lines = [line for line in error.splitlines() if line.startswith("error: ")]
            assert (process.returncode, len(lines)) == (2, 1), error
            assert BAD_HUBS[case][1] in lines[0]
            assert (
                "Try again, set HF_ENDPOINT to a mirror of the Hub, or download it by" in lines[0]
            )
            assert (
                f"-o 'FOLDER/{KNOWN}.ckpt' https://huggingface.co{page_of(KNOWN)}) and" in lines[0]
            )
            assert "Traceback" not in error
            assert [f for f in files(tmp_path / f"hf{number}") if "CACHEDIR" not in f] == []


def test_temporary_hub_errors_are_retried(tmp_path, monkeypatch):
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
    monkeypatch.setattr(download, "_unreachable", lambda url: None)
    assert weights.fetch_weights(UNKNOWN) == tmp_path / "net"
    asked = {"repo_id": HUB_REPO, "filename": f"{UNKNOWN}.ckpt", "revision": HUB_REVISION}
    asked |= {"local_files_only": False}
    assert tries == [asked] * 3
    # The log of the client has one line per retry.
    from huggingface_hub.utils import _http

    said = ("'[Errno -2]' thrown while requesting HEAD https://x", "Retrying in 4s [Retry 3/5].")
    records = [logging.LogRecord("", logging.WARNING, "", 0, text, (), None) for text in said]
    shown = [record.getMessage() for record in records if _http.logger.filter(record)]
    assert shown == ["https://huggingface.co does not answer. Retrying in 4s [Retry 3/5]."]


def test_offline_without_the_file(tmp_path):
    code, _, error = fetch(KNOWN, HF_HUB_OFFLINE="1")
    assert code == 2
    assert f"HF_HUB_OFFLINE is set, and the file is not in {tmp_path / 'hf/hub'}" in error


def test_any_repository_of_the_hub(host):
    host.pages["/me/nets/resolve/v2/a/b.safetensors"] = Page(GOOD)
    code, out, error = fetch("hf://me/nets@v2/a/b.safetensors", HF_ENDPOINT=host.url)
    assert code == 0, error
    assert Path(out).read_bytes() == GOOD


def test_a_repository_of_open_clip_has_other_file_names(host):
    for name, body in (("open_clip_pytorch_model.bin", GOOD), ("open_clip_config.json", b"{}")):
        host.pages[f"/me/clip/resolve/main/{name}"] = Page(body)
    code, out, error = fetch("hf://me/clip", HF_ENDPOINT=host.url)
    assert code == 0, error
    assert Path(out).name == "open_clip_pytorch_model.bin" and Path(out).read_bytes() == GOOD
    assert Path(out).with_name("open_clip_config.json").read_text() == "{}"
    code, _, error = fetch("hf://me/clip/model.safetensors", HF_ENDPOINT=host.url)
    assert code == 2 and "me/clip has no model.safetensors at that revision (404)" in error


@pytest.mark.parametrize("way", ["hub", "url"])
def test_twenty_processes_download_once(host, way):
    page = page_of(UNKNOWN) if way == "hub" else "/net.pth"
    host.pages[page] = Page(GOOD, pause=2.0)  # slow, so that all processes wait
    source = UNKNOWN if way == "hub" else f"{host.url}/net.pth"
    processes = [zoo_process("fetch", source, HF_ENDPOINT=host.url) for _ in range(20)]
    results = [(*p.communicate(timeout=120), p.returncode) for p in processes]
    assert {code for _, _, code in results} == {0}, results
    assert len({out for out, _, _ in results}) == 1
    assert host.count("GET", page) == 1
