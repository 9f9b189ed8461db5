"""Steps that look at packages and the cache folder."""

import importlib.util
import json
import platform
import shutil
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

from robust_backbones.commands.check.steps import CheckSettings, Outcome
from robust_backbones.commands.install_detectron2 import DISTRIBUTION, VERSION
from robust_backbones.core import resources
from robust_backbones.core.files import cache_dir, locked

PROJECT = "robust-backbones"
SHOWN = {"torch": "torch", "torchvision": "torchvision", "numpy": "NumPy"}
FOR_DEVELOPERS = ("dev", "docs")  # extras that users do not need
LEAST_FREE_GB = 1.0  # the largest published model and its conversion


def versions(settings: CheckSettings) -> Outcome:
    """Report the versions of the main packages, and how Detectron2 was installed."""
    found = {PROJECT: resources.version(), "Python": platform.python_version()}
    missing = []
    for name, title in SHOWN.items():
        try:
            found[title] = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    if detectron2 := _detectron2():
        found["Detectron2"] = detectron2
    found["system"] = f"{platform.system()} {platform.machine()}"
    text = ", ".join(f"{name} {version}" for name, version in found.items())
    if missing:
        text = f"missing: {', '.join(missing)}. Run: pip install {' '.join(missing)}. Found: {text}"
    elif not detectron2:
        text = f"missing: Detectron2. Run: robust-backbones install-detectron2. Found: {text}"
    return Outcome(text, facts=found, failed=bool(missing) or not detectron2)


def _detectron2() -> str | None:
    """Return version, origin and extension of the installed Detectron2; None if it is missing."""
    spec = importlib.util.find_spec("detectron2")
    if spec is None or not spec.submodule_search_locations:
        return None
    built = any(Path(spec.submodule_search_locations[0]).glob("_C.*.so"))
    extension = "with" if built else "without"
    return f"{_origin()}, {extension} C++ extension"


def _origin() -> str:
    for name in (DISTRIBUTION, "detectron2"):
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        if name == DISTRIBUTION:
            patched = "" if found.version == VERSION else ", unpatched"
            return f"{found.version} from install-detectron2{patched}"
        source = json.loads(found.read_text("direct_url.json") or "{}")
        if commit := source.get("vcs_info", {}).get("commit_id"):
            return f"{found.version} from source, commit {commit[:12]}"
        return f"{found.version} from {'a local folder' if source else 'a wheel'}"
    return "of unknown version, not installed by pip"


def packages(settings: CheckSettings) -> Outcome:
    """Compare the installed packages with the requirements, and list the extras."""
    try:
        stated = [Requirement(text) for text in metadata.requires(PROJECT) or []]
    except metadata.PackageNotFoundError:
        return Outcome(
            "the project is not installed by pip, so its requirements are unknown. Run: "
            "pip install -e '.[detection]'",
            failed=True,
        )
    extras = metadata.metadata(PROJECT).get_all("Provides-Extra") or []
    faults = {}
    for extra in ("", *(e for e in extras if e not in FOR_DEVELOPERS)):
        active = [r for r in stated if r.marker is None or r.marker.evaluate({"extra": extra})]
        own = [r for r in active if not extra or r.marker is not None]
        faults[extra] = [fault for r in own if (fault := _fault(r))]
    required = len([r for r in stated if r.marker is None])
    wrong = faults.pop("") + faults.pop("detection", [])
    present = [extra for extra, absent in faults.items() if not absent]
    absent = [f"{extra} ({', '.join(faults[extra])})" for extra in faults if faults[extra]]
    facts = {"wrong": wrong, "extras": present, "absent_extras": absent}
    if wrong:
        fix = "Run: pip install 'robust-backbones[detection]'"
        return Outcome(f"{'; '.join(wrong)}. {fix}", facts=facts, failed=True)
    text = f"{required} required packages; optional extras: {', '.join(present) or 'none'}"
    return Outcome(text + (f"; absent: {'; '.join(absent)}" if absent else ""), facts=facts)


def _fault(wanted: Requirement) -> str:
    try:
        found = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        return f"{wanted.name} is missing"
    if wanted.specifier.contains(found, prereleases=True):
        return ""
    return f"{wanted.name} is {found}, but {wanted.specifier} is required"


def cache(settings: CheckSettings) -> Outcome:
    """Write to the cache folder, and report its free space."""
    folder = cache_dir()
    with locked(folder / "locks" / "check.lock"):
        free = shutil.disk_usage(folder).free / 1e9
    text = f"{folder} is writable, {free:.1f} GB free"
    if failed := free < LEAST_FREE_GB:
        text += f". Free {LEAST_FREE_GB:g} GB, or set ROBUST_BACKBONES_CACHE to another folder"
    return Outcome(text, facts={"free_gb": round(free, 1)}, failed=failed)
