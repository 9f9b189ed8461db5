"""Comparisons of detectors. They are not available yet."""

from collections.abc import Sequence
from typing import NoReturn

from classification.compare.kinds import Cost, Kind, Measured, Task
from classification.compare.networks import Network
from classification.compare.settings import CompareSettings, TrialGroup
from classification.study.file import StudyRun
from robust_backbones.core.errors import UserError


def _tasks(settings: CompareSettings, networks: Sequence[Network]) -> list[Task]:
    raise UserError(f"DATA {settings.data[0]}: detectors cannot be compared yet.")


def _check(settings: CompareSettings) -> None:
    raise NotImplementedError


def _parts(
    settings: CompareSettings,
    networks: Sequence[Network],
    tasks: Sequence[Task],
    groups: Sequence[TrialGroup],
) -> NoReturn:
    raise NotImplementedError


def _short_parts(
    settings: CompareSettings, networks: Sequence[Network], tasks: Sequence[Task]
) -> NoReturn:
    raise NotImplementedError


def _cost(
    run: StudyRun, short: Sequence[Measured], networks: Sequence[Network], tasks: Sequence[Task]
) -> Cost:
    raise NotImplementedError


KIND = Kind("train", {}, "", _tasks, _check, _parts, _short_parts, _cost)
