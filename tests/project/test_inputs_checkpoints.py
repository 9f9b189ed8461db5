"""Run every case of the table of checkpoints in docs/reference/input_files.md."""

import torch

from classification import models
from robust_backbones.checkpoint.io import read_checkpoint
from robust_backbones.commands import conversion
from robust_backbones.core.errors import UserError
from tests.support import foreign_checkpoints
from tests.support.detector_runs import small
from tests.support.foreign_checkpoints import KINDS, Kind
from tests.support.generated_tables import check_table

# isort: split
from robust_backbones.detection.training import trainer

OPTIONS = {
    "key": "--key {}",
    "allow_pickle": "--allow-pickle",
    "from_detector": "--from-detector",
    "assume_rgb": "--assume-rgb",
}
CONVERT = {name: None for name in ("arch", "key", "statistics")}
CONVERT |= dict.fromkeys(list(OPTIONS)[1:], False)


def outcome(read, *args, **options) -> str:
    try:
        read(*args, **options)
    except UserError as error:
        return "convert first" if "robust-backbones convert" in str(error) else "refused"
    return "read"


def with_options(kind: Kind, path) -> str:
    """Result of convert, which has options for files that need a choice."""
    plain = CONVERT | {"name": str(path), "path": path}
    if not kind.options:
        return outcome(conversion.read, **plain)
    assert outcome(conversion.read, **plain) != "read"
    given = " ".join(f"`{OPTIONS[name].format(value)}`" for name, value in kind.options.items())
    found = outcome(conversion.read, **plain | kind.options)
    return f"{found} with {given}" if found == "read" else found


def test_checkpoints_and_commands(tmp_path, resnet18_backbone):
    made = trainer.Trainer(small(tmp_path / "run", resnet18_backbone))
    state = {k: v.to(torch.float16) for k, v in foreign_checkpoints.resnet18_state().items()}
    rows = [
        [
            "checkpoint",
            "`convert`, `--inspect`",
            "`transfer`",
            "`robustness-eval`",
            "`MODEL.WEIGHTS`",
        ]
    ]
    for kind in KINDS:
        path = tmp_path / "a.pth"
        kind.write(state, path)
        commands = (
            read_checkpoint,
            models.load_classifier,
            lambda p: made.checkpointer.load(str(p), []),
        )
        rows.append([kind.name, with_options(kind, path), *(outcome(c, path) for c in commands)])
    check_table("docs/reference/input_files.md", "checkpoints", rows)
