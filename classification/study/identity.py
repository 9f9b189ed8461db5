"""What makes two runs of a study the same: their options, and what their input files hold."""

import hashlib
import json
import re
from pathlib import Path

from classification.study.commands import essence
from classification.study.storage import Store
from robust_backbones.core.files import sha256
from robust_backbones.core.resources import config_file


def identity(name: str, options: dict, needs: list[Path], store: Store | None) -> str:
    """Digest of what the result depends on, the contents of input files included. What an earlier
    part makes is not there yet at first: its folder has the digest of that run in its name."""

    def made(text: str) -> bool:
        return any(text.startswith(folder.as_posix() + "/") for folder in needs)

    kept = essence(options)
    values = [v for value in kept.values() for v in (value if isinstance(value, list) else [value])]
    texts = [v for v in values if isinstance(v, str) and not made(v)]
    files = {text: _digest(str(file)) for text in texts if (file := _file(text))}
    text = json.dumps([name, kept, files], sort_keys=True, default=str)
    if store:  # the same on machines whose caches lie elsewhere
        text = text.replace(store.folder.as_posix(), store.url)
    return hashlib.sha256(text.encode()).hexdigest()


def _file(text: str) -> Path | None:
    try:
        path = config_file(text)
        return path if path.is_file() else None
    except (OSError, ValueError):  # too long, or with a zero byte: no path
        return None


_DIGESTS: dict[tuple, str] = {}


def _digest(path: str) -> str:
    """Of a file; of a config also of those that it is based on."""
    file = Path(path)
    key = (path, file.stat().st_size, file.stat().st_mtime_ns)
    if key not in _DIGESTS:  # many runs have the same weights
        _DIGESTS[key] = sha256(file)
    if file.suffix not in (".yaml", ".yml"):
        return _DIGESTS[key]
    text = file.read_text(encoding="utf-8", errors="replace")
    base = re.search(r"^_BASE_:\s*['\"]?([^'\"\n#]+)", text, re.M)
    above = str(file.parent / base[1].strip()) if base else ""
    return _DIGESTS[key] + (_digest(above) if above != path and _file(above) else "")
