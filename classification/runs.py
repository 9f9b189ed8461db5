"""Output folders: is the run that is asked for there already?"""

import json
from pathlib import Path

from robust_backbones.errors import UserError


def finished(output: Path, settings: dict) -> bool:
    """Whether the folder holds this very run, done; says so if it does.

    Args:
        output: the run's folder; its `result.json` marks a finished run.
        settings: all that decides the run's numbers, in plain JSON types.

    Raises:
        UserError: another run is there, or what is there is no result.
    """
    result = output / "result.json"
    if not result.exists():
        return False
    from classification.engine import differences

    try:
        found = json.loads(result.read_text(encoding="utf-8"))["settings"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{result} is not a result file; choose another --output.") from None
    if different := differences(found, settings):
        raise UserError(
            f"{output} holds a finished run with other settings: {different}; choose another "
            "--output."
        )
    print(f"{output} holds this run already, finished; nothing to do.")
    return True
