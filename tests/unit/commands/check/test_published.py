"""Published weights that are right, damaged or different; no network."""

import copy
import hashlib
import io
import json
import logging
from dataclasses import replace

import pytest
import torch

from robust_backbones import download, weights, zoo
from robust_backbones.commands.check import command, published, run
from tests.support.fake_hub import HTML, Page
from tests.support.networks import random_network, robustness_contents

pytestmark = pytest.mark.usefixtures("empty_cache")

NAME = "resnet18_l2_eps3"
STEPS = [step.name for step in run.PUBLISHED]


@pytest.fixture(scope="module")
def contents():
    """Contents of a file as the paper's authors published it, with random weights."""
    return robustness_contents(random_network("resnet18", 1000).state_dict())


@pytest.fixture(scope="module")
def right(contents, tmp_path_factory):
    path = tmp_path_factory.mktemp("published") / f"{NAME}.ckpt"
    torch.save(contents, path)
    return path.read_bytes()


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A function that puts the bytes of NAME into a mirror folder, and publishes their digest."""
    (tmp_path / "mirror").mkdir()
    monkeypatch.setenv(weights.MIRROR, str(tmp_path / "mirror"))

    def put(content: bytes, digest: str | None = None):
        path = tmp_path / "mirror" / f"{NAME}.ckpt"
        path.write_bytes(content)
        digest = digest or hashlib.sha256(content).hexdigest()
        monkeypatch.setitem(zoo.MODELS, NAME, replace(zoo.find_model(NAME), sha256=digest))

    return put


@pytest.fixture
def check(monkeypatch, tmp_path, capsys):
    """A function that runs the steps of published weights: `({step: its JSON}, output)`."""
    monkeypatch.setattr(run, "INSTALLATION", ())
    monkeypatch.delenv("NO_PROXY")
    for name in ("fvcore", "detectron2", "robust_backbones.detection"):
        monkeypatch.setattr(logging.getLogger(name), "level", 0)  # `load` changes it

    def run_check(*options: str):
        output = tmp_path / "check.json"
        status = command.main(["--online", *options, "--output", str(output)])
        steps = json.loads(output.read_text())["tables"][1]["steps"]
        assert [step["step"] for step in steps] == STEPS
        assert status == any(step["state"] == "FAILED" for step in steps)
        return {step["step"]: step for step in steps}, capsys.readouterr().out

    return run_check


def changed(contents, change) -> bytes:
    """The bytes of a file with other contents."""
    new = copy.deepcopy(contents)
    change(new)
    buffer = io.BytesIO()
    torch.save(new, buffer)
    return buffer.getvalue()


def failed(steps) -> list[str]:
    return [name for name, step in steps.items() if step["state"] == "FAILED"]


def test_the_published_file_passes(mirror, right, check, tmp_path):
    mirror(right)
    steps, shown = check()
    assert not failed(steps) and steps["accuracy"]["state"] == "skipped"
    assert "in the mirror folder" in steps["fetch"]["text"]
    assert "as published" in steps["digest"]["text"]
    assert "not stated: constraint, eps; as in the table" in steps["contents"]["text"]
    assert max(steps["conversion"]["facts"]["differences"].values()) < 1e-5
    block = shown.partition("paste the following block into an issue:")[2].rpartition("```")[0]
    assert hashlib.sha256(right).hexdigest() in block and str(tmp_path) not in block


def _other_mean(contents):
    for part in ("normalizer", "attacker.normalize"):
        contents["model"][f"module.{part}.new_mean"] = torch.full((3, 1, 1), 0.5)


def _eps(contents):
    contents["eps"] = 1.0


def _resnet34(contents):
    contents |= robustness_contents(random_network("resnet34", 1000).state_dict())


def _ten_classes(contents):
    contents |= robustness_contents(random_network("resnet18", 10).state_dict())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_other_mean, "statistics: mean 0.5 0.5 0.5, std 0.229 0.224 0.225 in the file, me"),
        (_eps, "eps: 1.0 in the file, 3.0 in the table of published models"),
        (_resnet34, "arch: resnet34 in the file, resnet18 in the table of published models"),
        (_ten_classes, "classes: 10 in the file, 1000 in the table of published models"),
    ],
)
def test_other_contents_are_named_and_the_rest_still_runs(mirror, contents, check, change, message):
    mirror(changed(contents, change))
    steps, _ = check()
    assert failed(steps) == ["contents"]
    assert steps["contents"]["text"].startswith(message)


@pytest.mark.parametrize(
    ("content", "digest", "message"),
    [
        (None, "0" * 64, "instead of 000000000000...: it is truncated, damaged or another file"),
        (HTML, "0" * 64, "is an HTML page, not a weight file"),
    ],
)
def test_wrong_bytes_fail_and_nothing_uses_them(mirror, right, check, content, digest, message):
    mirror(content or right, digest)
    steps, _ = check()
    assert failed(steps) == ["fetch"] and message in steps["fetch"]["text"]
    assert {steps[name]["state"] for name in STEPS[1:]} == {"skipped"}


def test_a_truncated_file_without_a_digest(mirror, right, check, monkeypatch):
    mirror(right[:-1000])
    steps, _ = check()
    assert (
        failed(steps) == ["contents"] and "not a complete checkpoint" in steps["contents"]["text"]
    )


def test_a_url_without_published_numbers(host, right, check):
    host.pages["/net.pth"] = Page(right)
    steps, shown = check("--weights", f"{host.url}/net.pth?token=secret")
    assert not failed(steps) and "no digest is published" in steps["digest"]["text"]
    assert "secret" not in shown.partition("paste")[2]


def test_a_proxy_is_used(host, right, check, monkeypatch):
    monkeypatch.setenv("http_proxy", host.url)
    monkeypatch.setenv("no_proxy", "")
    host.pages["http://localhost:9/net.pth"] = Page(right)
    steps, _ = check("--weights", "http://localhost:9/net.pth")
    assert not failed(steps) and host.log


@pytest.mark.parametrize("source", [NAME, "hf://me/nets/a.pth", "https://example.org/net.pth"])
def test_no_network_is_one_clear_line(check, monkeypatch, source):
    def refuse(*args):
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(download.socket, "create_connection", refuse)
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    steps, shown = check("--weights", source)
    assert failed(steps) == ["fetch"]
    assert "cannot be reached (Connection refused). Try again" in steps["fetch"]["text"]
    assert sum("Connection refused" in line for line in shown.splitlines()) == 2  # and the block


ROW = {"accuracy": 53.3, "right": 2665, "images": 5000, "interval": [51.9, 54.7]}


@pytest.mark.parametrize(
    ("accuracy", "wrong", "message"),
    [
        (53.12, False, "top-1 53.30 % on 5000 images; the published 53.12 % is inside the 95 %"),
        (62.83, True, "the published 62.83 % is outside the 95 % interval [51.90, 54.70]"),
        (None, False, "95 % interval [51.90, 54.70]; no accuracy is published"),
    ],
)
def test_the_published_accuracy_is_compared(accuracy, wrong, message):
    found = published.compare_accuracy(ROW, accuracy)
    assert found.failed == wrong and message in found.text


@pytest.mark.parametrize(("folder", "images"), [("ImageNet", "20"), ("ImageNet/val", "all")])
def test_the_accuracy_is_measured_by_robustness_eval(
    mirror, right, check, monkeypatch, tmp_path, folder, images
):
    mirror(right)
    (tmp_path / "ImageNet/val").mkdir(parents=True)
    commands = []

    def evaluate(words):
        commands.append(words)
        options = dict(zip(words, words[1:], strict=False))
        target = weights.Path(options["--output"])
        target.mkdir(parents=True)
        result = {"metrics": {"attacks": {"clean": ROW}}}
        (target / "result.json").write_text(json.dumps(result))

    monkeypatch.setattr(published, "_run", evaluate)
    steps, _ = check("--imagenet", str(tmp_path / folder), "--images", images)
    assert steps["accuracy"]["state"] == "ok"
    [words] = commands
    assert words[words.index("--data") + 1] == str(tmp_path / "ImageNet")
    assert ("--images" in words) == (images == "20")


def test_the_message_of_a_failed_evaluation_is_shown(mirror, right, check, tmp_path):
    mirror(right)
    (tmp_path / "ImageNet/val/cat").mkdir(parents=True)
    steps, _ = check("--imagenet", str(tmp_path / "ImageNet"))
    assert failed(steps) == ["accuracy"]
    assert "(robustness-eval, exit code 2)" in steps["accuracy"]["text"]
