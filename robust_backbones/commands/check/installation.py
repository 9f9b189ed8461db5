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
from robust_backbones.core.extras import install_command, pip_install
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
        text = f"missing: {', '.join(missing)}. Run: {pip_install(*missing)}. Found: {text}"
    forgotten = not detectron2 and not missing and _wants_detection()
    if forgotten:
        text = f"missing: Detectron2. Run: {install_command('detection')}. Found: {text}"
    return Outcome(text, facts=found, failed=bool(missing) or forgotten)


def _wants_detection() -> bool:
    """Return whether all packages of the extra `detection` are installed, of any version."""
    try:
        wanted = _requirements()["detection"]
    except metadata.PackageNotFoundError:  # the step `packages` reports this
        return True
    return not any("is missing" in _fault(requirement) for requirement in wanted)


def _requirements() -> dict[str, list[Requirement]]:
    """Return the requirements of the project, with the key "", and of each extra for users.

    Raises:
        PackageNotFoundError: the project is not installed by pip.
    """
    stated = [Requirement(text) for text in metadata.requires(PROJECT) or []]
    extras = metadata.metadata(PROJECT).get_all("Provides-Extra") or []
    found = {"": [r for r in stated if r.marker is None or r.marker.evaluate({"extra": ""})]}
    for extra in (e for e in extras if e not in FOR_DEVELOPERS):
        found[extra] = [r for r in stated if r.marker and r.marker.evaluate({"extra": extra})]
    return found


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
        stated = _requirements()
    except metadata.PackageNotFoundError:
        return Outcome(
            "the project is not installed by pip, so its requirements are unknown. Run in the "
            "folder of the clone: pip install -e .",
            failed=True,
        )
    faults = {extra: {r: f for r in own if (f := _fault(r))} for extra, own in stated.items()}
    required, wrong = len(stated[""]), faults.pop("")
    if _detectron2():  # without it, only classification is installed
        wrong |= faults.pop("detection", {})
    present = [extra for extra, absent in faults.items() if not absent]
    absent = [f"{extra} ({', '.join(faults[extra].values())})" for extra in faults if faults[extra]]
    facts = {"wrong": list(wrong.values()), "extras": present, "absent_extras": absent}
    if wrong:
        fix = f"Run: {pip_install(*(f'{r.name}{r.specifier}' for r in wrong))}"
        return Outcome(f"{'; '.join(wrong.values())}. {fix}", facts=facts, failed=True)
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
