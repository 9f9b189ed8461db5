"""What is installed: the dependencies' lists agree, and the archives hold all that is needed."""

import importlib
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from unittest.mock import patch

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from robust_backbones import __version__, get_config_file
from robust_backbones.__main__ import COMMANDS, run
from robust_backbones.core import resources
from robust_backbones.core.errors import UserError
from tests.support import ROOT

BUILD = "import setuptools.build_meta as b; b.build_sdist('{0}'); b.build_wheel('{0}')"
LEFT_OUT = (
    ".git",
    ".venv*",
    ".*_cache",
    "__pycache__",
    "*.egg-info",
    "build",
    "dist",
    "output",
    "weights",
    "site",
)


def git(*words, folder=ROOT) -> str:
    if not (shutil.which("git") and (ROOT / ".git").exists()):
        pytest.skip("needs git and a clone")
    return subprocess.run(
        ["git", "-c", "user.name=n", "-c", "user.email=e", *words],
        cwd=folder,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.fixture(scope="module")
def declared():
    """All requirements of setup.py: canonical name -> requirement."""
    with patch("setuptools.setup") as setup:
        runpy.run_path(str(ROOT / "setup.py"))
    given = setup.call_args.kwargs
    texts = [*given["install_requires"], *sum(given["extras_require"].values(), [])]
    return {canonicalize_name((r := Requirement(text)).name): r for text in texts}


@pytest.fixture(scope="module")
def locked():
    """canonical name -> the entries of requirements.lock."""
    text = (ROOT / "requirements.lock").read_text()
    found = {}
    for entry in re.split(r"\n(?=[a-z])", text[text.index("\nabsl") + 1 :]):
        found.setdefault(canonicalize_name(entry.split("==")[0]), []).append(entry)
    return found


def test_the_lock_has_every_requirement_in_a_version_that_setup_py_allows(declared, locked):
    for name, requirement in declared.items():
        for entry in locked[name]:
            assert requirement.specifier.contains(re.match(r"\S+==(\S+)", entry)[1]), entry


@pytest.mark.parametrize(
    ("file", "line"),
    [("CITATION.cff", f"version: {__version__}"), ("CHANGELOG.md", f"## {__version__} - ")],
)
def test_the_version_is_the_same_everywhere(file, line):
    text = (ROOT / file).read_text(encoding="utf-8")
    first = re.search(r"^(version: |## \d).*", text, re.M)
    assert first and first[0].startswith(line)


def test_every_file_of_the_lock_is_hashed(locked):
    assert all("--hash=sha256:" in entry for entries in locked.values() for entry in entries)


def test_the_table_of_dependencies_is_complete(declared):
    rows = re.findall(
        r"^\| ([\w-]+) \|", (ROOT / "docs/development/dependencies.md").read_text(), re.M
    )
    apart = {"imagecorruptions-imaug", "pillow-heif", "wheel"}  # pyproject.toml's group
    assert sorted(map(canonicalize_name, rows[1:])) == sorted({*declared, *apart})


@pytest.mark.parametrize(
    "name, found",
    [
        ("configs/studies/demo.yaml", "studies/demo.yaml"),
        ("studies/demo.yaml", "studies/demo.yaml"),
        ("voc_faster_rcnn_standard.yaml", "voc_faster_rcnn_standard.yaml"),
        ("robust-backbones/base/voc.yaml", "base/voc.yaml"),
        ("mine/robust-backbones/configs/base/voc.yaml", "base/voc.yaml"),
        ("../configs/base/voc.yaml", None),
        ("nope.yaml", None),
        ("zoo.py", None),
    ],
)
def test_configs_are_found_by_name_from_anywhere(name, found, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wanted = Path(name) if found is None else ROOT / "configs" / found
    assert resources.config_file(name) == wanted
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Path(name).touch()
    assert resources.config_file(name) == Path(name)  # the user's own comes first


def test_results_name_the_commit_and_whether_it_was_changed(tmp_path):
    package = tmp_path / "robust_backbones"
    package.mkdir()
    for name in (
        "__init__.py",
        "__init__.pyi",
        "core/__init__.py",
        "core/errors.py",
        "core/paths.py",
        "core/resources.py",
    ):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "robust_backbones" / name, package / name)

    def version() -> str:
        ask = "from robust_backbones.core import resources; print(resources.version())"
        return subprocess.check_output([sys.executable, "-c", ask], cwd=tmp_path, text=True).strip()

    assert version() == __version__
    git("init", "-q", folder=tmp_path)
    git("add", ".", folder=tmp_path)
    git("commit", "-q", "-m", "all", folder=tmp_path)
    commit = git("rev-parse", "HEAD", folder=tmp_path)[:12]
    assert version() == f"{__version__}+{commit}"
    with open(package / "core/resources.py", "a") as file:
        file.write("\n")
    assert version() == f"{__version__}+{commit}-dirty"


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """(names in the source archive, names in the wheel, the wheel)."""
    folder = tmp_path_factory.mktemp("archives")
    shutil.copytree(ROOT, folder / "tree", ignore=shutil.ignore_patterns(*LEFT_OUT))
    subprocess.run(
        [sys.executable, "-c", BUILD.format(folder)],
        cwd=folder / "tree",
        check=True,
        capture_output=True,
    )
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    wheel = next(folder.glob("*.whl"))
    return source, set(zipfile.ZipFile(wheel).namelist()), wheel


def test_the_source_archive_has_every_file_of_the_clone(archives):
    assert set(git("ls-files").splitlines()) <= archives[0]


def test_the_wheel_has_the_packages_their_data_and_the_configs(archives):
    def files(folder: str) -> set[str]:
        whole = (path for path in (ROOT / folder).rglob("*") if path.is_file())
        return {p.relative_to(ROOT).as_posix() for p in whole if "__pycache__" not in p.parts}

    configs = {f"robust_backbones/{name}" for name in files("configs")}
    expected = files("robust_backbones") | files("classification") | configs
    assert {name for name in archives[1] if ".dist-info/" not in name} == expected


@pytest.mark.slow
def test_the_wheel_works_outside_of_a_clone(archives, tmp_path, monkeypatch):
    place = tmp_path / "installed"
    zipfile.ZipFile(archives[2]).extractall(place)  # what installing a pure wheel does
    monkeypatch.setenv("PYTHONPATH", str(place))

    def run(*words) -> str:
        return subprocess.check_output([sys.executable, *words], cwd=tmp_path, text=True)

    assert "train " in run("-m", "robust_backbones")
    assert "--num-gpus" in run("-m", "robust_backbones", "train", "--help")
    assert "0 finished" in run("-m", "classification.study", "plan", "studies/table1.yaml")
    code = "from robust_backbones import get_config_file as f; print(f('base/voc.yaml'))"
    assert run("-c", code).strip() == str(place / "robust_backbones/configs/base/voc.yaml")
    (tmp_path / "mine.yaml").write_text("_BASE_: robust-backbones/base/voc.yaml\n")
    code = """from robust_backbones.detection import __file__ as place, config
print(place, config.load_config("mine.yaml").MODEL.ROI_HEADS.NUM_CLASSES)"""
    module = place / "robust_backbones" / "detection" / "__init__.py"
    assert run("-c", code).split() == [str(module), "20"]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("coco_mask_rcnn_robust_eps4.yaml", "coco_mask_rcnn_robust_eps3.yaml"),
        ("robust_resnet_fpn.yaml", "base/robust_resnet_fpn.yaml"),
        ("figure.yaml", "studies/figure1.yaml"),
    ],
)
def test_a_config_that_does_not_exist_suggests_others(name, near):
    with pytest.raises(UserError, match=f"no packaged config is named '{name}'. .*{near}"):
        get_config_file(name)


def test_every_command_is_an_entry_of_the_table(capsys):
    with pytest.raises(UserError, match="command 'trane' is unknown. Did you mean train, transfer"):
        run("robust-backbones", COMMANDS, ["trane"])
    run("robust-backbones", COMMANDS, [])
    listed = [line.split()[1] for line in capsys.readouterr().out.splitlines()[:-1]]
    assert listed == list(COMMANDS)
    for module, _ in COMMANDS.values():
        assert callable(importlib.import_module(module).main)


@pytest.mark.parametrize("script", sorted((ROOT / "tools").glob("*.py")), ids=lambda p: p.name)
def test_tools_are_thin_and_run_from_anywhere(script, tmp_path):
    assert len(script.read_text().splitlines()) <= 30
    bare = ["-S"] if script.stem == "install_detectron2" else []  # -S: no installed packages
    words = [sys.executable, *bare, str(script), "--help"]
    text = subprocess.check_output(words, cwd=tmp_path, text=True, env={"COLUMNS": "100"})
    assert text.startswith(f"usage: {script.name} ")
