"""The wheel of Detectron2: patched files, the model zoo, and metadata that pip accepts."""

import base64
import hashlib
import io
import subprocess
import sys
import tarfile
import zipfile

import pytest

from robust_backbones.commands import install_detectron2

ARCHIVE = {
    "LICENSE": "Apache",
    "setup.py": "raise SystemExit",
    "detectron2/__init__.py": '__version__ = "0.6"\n',
    "detectron2/data/build.py": "x = np.int\n",
    "detectron2/model_zoo/configs/Misc/semantic.yaml": "VERSION: 2\n",
    "detectron2/model_zoo/configs/common/train.py": "train = 1\n",
    "projects/PointRend/point_rend/__init__.py": "point = 1\n",
    "projects/PointRend/train_net.py": "",
    "tools/__init__.py": "",
    "pb1_detectron2.egg-info/requires.txt": (
        "Pillow>=7.1\niopath<0.1.10,>=0.1.7\nblack==21.4b2\n\n[all]\nshapely\n"
    ),
}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    with tarfile.open(folder / "archive.tar.gz", "w:gz") as tar:
        for name, text in ARCHIVE.items():
            member = tarfile.TarInfo(f"pb1-detectron2-0.6/{name}")
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return install_detectron2.write_wheel(folder / "archive.tar.gz", folder)


@pytest.fixture(scope="module")
def contents(wheel):
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name).decode() for name in file.namelist()}


INFO = "pb1_detectron2-0.6+patched.dist-info"


def test_the_wheel_has_the_packages_and_the_configs_of_the_model_zoo(contents):
    assert {name for name in contents if not name.startswith(INFO)} == {
        "detectron2/_C.py",
        "detectron2/__init__.py",
        "detectron2/data/build.py",
        "detectron2/model_zoo/configs/Misc/semantic.yaml",
        "detectron2/model_zoo/configs/common/train.py",
        "detectron2/projects/point_rend/__init__.py",
    }
    assert contents["detectron2/data/build.py"] == "x = int\n"
    assert contents["detectron2/__init__.py"] == ARCHIVE["detectron2/__init__.py"]


def test_every_digest_of_the_record_is_that_of_its_file(contents):
    rows = [row.rsplit(",", 2) for row in contents[f"{INFO}/RECORD"].splitlines()]
    assert {name for name, _, _ in rows} == set(contents)
    for name, digest, size in rows[:-1]:
        data = contents[name].encode()
        found = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        assert (digest, int(size)) == (f"sha256={found}", len(data)), name


def test_requirements_are_those_that_the_release_needs(contents):
    lines = contents[f"{INFO}/METADATA"].splitlines()
    needed = [line for line in lines if line.startswith("Requires-Dist")]
    assert needed == ["Requires-Dist: Pillow>=7.1", "Requires-Dist: iopath>=0.1.7"]
    assert "Version: 0.6+patched" in lines


def test_pip_installs_the_wheel(wheel, tmp_path):
    words = ["install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path)]
    words += ["--disable-pip-version-check", "--find-links", str(wheel.parent)]
    subprocess.run([sys.executable, "-m", "pip", *words, "pb1-detectron2==0.6+patched"], check=True)
    assert (tmp_path / "detectron2" / "_C.py").is_file()
    assert not (tmp_path / INFO / "direct_url.json").exists()  # `pip freeze` names the version


# Installed version of pb1-detectron2, options -> whether the release is installed, printed text
RUNS = {
    "another Detectron2": (None, [], False, "already installed, and was not changed."),
    "another, --replace": (None, ["--replace"], False, "already installed, and was not changed."),
    "current": ("0.6+patched", ["--replace"], False, "already installed, and was not changed."),
    "earlier": ("0.6", [], False, "It has no patches. To replace it, add --replace."),
    "earlier, --replace": ("0.6", ["--replace"], True, ""),
}


@pytest.mark.parametrize("run", RUNS)
def test_an_installed_detectron2_is_kept(run, monkeypatch, capsys):
    version, options, installs, text = RUNS[run]
    called = []
    monkeypatch.setattr(install_detectron2, "_installed", lambda: version)
    monkeypatch.setattr(install_detectron2, "_pip", lambda *words: 0)
    monkeypatch.setattr(install_detectron2, "_install_release", lambda: called.append(1) or 0)
    assert install_detectron2.main(options) == 0
    assert bool(called) == installs
    assert text in capsys.readouterr().out


def test_the_official_build_replaces_the_release(monkeypatch):
    """Two distributions that own one folder would delete each other's files."""
    calls = []
    monkeypatch.setattr(install_detectron2, "_installed", lambda: "0.6+patched")
    monkeypatch.setattr(install_detectron2, "_pip", lambda *words: calls.append(words) or 0)
    assert install_detectron2.main(["--official"]) == 0
    assert [words[0] for words in calls] == ["install", "uninstall", "install"]
    assert "fvcore" in calls[0]


@pytest.mark.parametrize(
    ("module", "message"),
    [("torch", "Install torch and torchvision first"), ("pip", "Run: uv pip install pip")],
)
def test_what_must_be_there_first(module, message, monkeypatch, capsys):
    find = install_detectron2.importlib.util.find_spec
    monkeypatch.setattr(
        install_detectron2.importlib.util, "find_spec", lambda n: None if n == module else find(n)
    )
    monkeypatch.setattr(install_detectron2, "_pip", lambda *words: pytest.fail(str(words)))
    with pytest.raises(SystemExit):
        install_detectron2.main([])
    assert message in capsys.readouterr().err
