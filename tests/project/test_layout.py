"""The arrows of the design go one way: read from the syntax trees."""

import ast
from pathlib import Path

import pytest

from tests.support import ROOT

# What classification/ may use.
BORDER = {
    "archs",
    "core",
    "sources",
    "timm_networks",
    "zoo",
    "weights",
    "checkpoint",
    "attacks",
    "corruptions",
    "finite",
    "arithmetic",
    "process_groups",
}
FILES = sorted((ROOT / "robust_backbones").rglob("*.py")) + sorted(
    (ROOT / "classification").rglob("*.py")
)


def imports(path: Path) -> set[str]:
    """Full names of all modules that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows_go_one_way(path):
    part = path.relative_to(ROOT).parts
    names = imports(path)
    if part[:2] != ("robust_backbones", "detection"):
        assert not [n for n in names if n.startswith("detectron2")]
    if part[0] == "robust_backbones":
        assert not [n for n in names if n.startswith("classification")]
        if part[1] not in ("detection", "commands"):
            assert not [n for n in names if n.startswith("robust_backbones.detection")]
    else:
        ours = {n.split(".")[1] for n in names if n.startswith("robust_backbones.")}
        assert ours <= BORDER | {"__version__", "__main__"}


@pytest.mark.parametrize(
    "name",
    [
        "__init__",
        "archs",
        "zoo",
        "commands/zoo",
        "core/cli",
        "core/resources",
        "core/errors",
        "core/eps",
        "core/files",
        "core/precision",
        "checkpoint/__init__",
        "checkpoint/array_pickles",
        "download",
        "weights",
        "core/signals",
    ],
)
def test_light_files_import_no_torch(name):
    names = imports(ROOT / "robust_backbones" / f"{name}.py")
    assert not [n for n in names if n.split(".")[0] in ("torch", "torchvision", "detectron2")]


def module(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def arrows() -> dict[str, set[str]]:
    """Module -> the modules of ours that it imports, inside functions too.

    Imports under `if __name__ == "__main__"` do not run when others import the module.
    """
    known = {module(path) for path in FILES}
    found = {}
    for path in FILES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        tree.body = [
            node
            for node in tree.body
            if not (isinstance(node, ast.If) and "__name__" in ast.unparse(node.test))
        ]
        targets = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= {name if name in known else str(node.module) for name in names}
        found[module(path)] = targets & known - {module(path)}
    return found


def circles(graph: dict[str, set[str]]) -> dict[str, list[str]]:
    """What is left of a graph without the nodes from which no arrow leads into a circle."""
    while leaves := {name for name, targets in graph.items() if not targets & set(graph)}:
        graph = {name: targets for name, targets in graph.items() if name not in leaves}
    return {name: sorted(targets & set(graph)) for name, targets in graph.items()}


def test_no_module_imports_itself_through_others():
    assert not circles(arrows())


def test_no_module_shares_its_name_with_a_package():
    """Neither in the singular nor in the plural: `transfer.py` beside `transfers/`."""
    packages = {path.parent for path in FILES if path.name == "__init__.py"}
    twins = [
        str(path.relative_to(ROOT))
        for path in FILES
        if {path.with_suffix(""), path.with_name(f"{path.stem}s")} & packages
    ]
    singular = [str(p.relative_to(ROOT)) for p in packages if p.with_name(f"{p.name}s") in packages]
    assert not twins + singular


# Parts of robust_backbones/: each may import those of lower numbers, and its own.
FLOORS = {
    "archs": 0,
    "core": 0,
    "meta_device": 0,
    "attacks": 1,
    "corruptions": 1,
    "zoo": 1,
    "timm_networks": 1,
    "sources": 2,
    "weights": 2,
    "checkpoint": 3,
    "detection": 4,
    "commands": 5,
}


def test_no_arrow_climbs():
    climbing = [
        f"{name} -> {target}"
        for name, targets in arrows().items()
        for target in targets
        if part(name) in FLOORS and part(target) in FLOORS
        if FLOORS[part(name)] < FLOORS[part(target)]
    ]
    assert not climbing


def part(name: str) -> str:
    """`core` of `robust_backbones.core.files`; empty for other packages."""
    top, _, rest = name.partition(".")
    return rest.split(".")[0] if top == "robust_backbones" else ""


def room(name: str) -> str:
    """The package or single module that a module belongs to, as a reader sees it."""
    deep = 3 if name.startswith("robust_backbones.detection.") else 2
    return ".".join(name.split(".")[:deep])


def test_no_package_imports_itself_through_others():
    rooms: dict[str, set[str]] = {}
    for name, targets in arrows().items():
        rooms.setdefault(room(name), set()).update({room(t) for t in targets} - {room(name)})
    assert not circles(rooms)


# Packages that a function may import, because they are extras or because only one path of a light
# module needs them.
OPTIONAL = {
    "braceexpand",
    "dill",
    "gdown",
    "huggingface_hub",
    "imagecorruptions",
    "jinja2",
    "matplotlib",
    "pillow_heif",
    "pyautoattack",
    "ray",
    "skimage",
    "timm",
    "webdataset",
}


def lazy_imports(path: Path) -> list[str]:
    """Modules imported inside functions, one entry for each import statement."""
    found = {}
    for function in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(function):
                if isinstance(node, ast.Import):
                    found[node.lineno] = node.names[0].name
                elif isinstance(node, ast.ImportFrom):
                    found[node.lineno] = str(node.module)
    return [name for name in found.values() if name.split(".")[0] not in OPTIONAL]


def is_command(path: Path) -> bool:
    """Whether the file parses a command line; such a file imports its work lazily, so that `--help`
    is fast."""
    names = {node.name for node in ast.parse(path.read_text()).body if hasattr(node, "name")}
    return path.name == "__main__.py" or "main" in names


# Modules with imports inside functions for another reason.
LAZY = {
    "robust_backbones/sources.py": "only weights of a library need its tables, which need torch",
    "robust_backbones/timm_networks.py": "the module that it imports needs timm, an extra",
    "robust_backbones/commands/conversion.py": "verifying a Detectron2 file needs Detectron2",
    "robust_backbones/detection/compat.py": "it first looks whether Detectron2 is installed",
    "classification/study/executors.py": "only runs on GPUs need torch, which takes seconds",
    "classification/study/run.py": "the module imports Ray, an extra",
}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_are_at_the_top(path):
    if str(path.relative_to(ROOT)) not in LAZY:
        assert len(lazy_imports(path)) <= is_command(path)
