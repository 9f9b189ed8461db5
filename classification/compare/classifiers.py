"""Comparisons of classifiers: tasks from image folders and known datasets, and their runs."""

from collections.abc import Sequence

from classification.compare.kinds import Cost, Kind, Measured, Task
from classification.compare.networks import Network
from classification.compare.settings import CompareSettings, TrialGroup
from classification.study.file import StudyRun


def _tasks(settings: CompareSettings, networks: Sequence[Network]) -> list[Task]:
    raise NotImplementedError


def _check(settings: CompareSettings) -> None:
    raise NotImplementedError


def _parts(
    settings: CompareSettings,
    networks: Sequence[Network],
    tasks: Sequence[Task],
    groups: Sequence[TrialGroup],
) -> list[dict]:
    raise NotImplementedError


def _short_parts(
    settings: CompareSettings, networks: Sequence[Network], tasks: Sequence[Task]
) -> list[dict]:
    raise NotImplementedError


def _cost(
    run: StudyRun, short: Sequence[Measured], networks: Sequence[Network], tasks: Sequence[Task]
) -> Cost:
    raise NotImplementedError


KIND = Kind("transfer", {}, "", _tasks, _check, _parts, _short_parts, _cost)
