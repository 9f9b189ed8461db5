"""Functions that a kind of data, such as image folders, contributes to a comparison."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from classification.compare.networks import Network
from classification.compare.settings import CompareSettings, TrialGroup
from classification.study.file import StudyRun


@dataclass(frozen=True)
class Task:
    """Data of a comparison.

    Attributes:
        name: label on the study's axis `task`, by which the report calls the task.
        options: options that select the data in the command of a run.
        train, test: number of training and test images that a run uses.
        classes: number of classes.
        fingerprints: fingerprints of the training and the test images. A comparison is not
            continued with different images.
    """

    name: str
    options: dict
    train: int
    test: int
    classes: int
    fingerprints: tuple[str, str]


@dataclass(frozen=True)
class Measured:
    """A finished short run.

    Attributes:
        run: the run.
        seconds: wall time in seconds, without the start of the process and its imports.
        start: seconds from the start of the process to the start of its work.
    """

    run: StudyRun
    seconds: float
    start: float


@dataclass(frozen=True)
class Cost:
    """Expected cost of a run.

    Attributes:
        low, high: ends of the range of the wall time in seconds.
        disk: bytes that stay on the disk.
        temporary: bytes on the disk while the run is executed.
    """

    low: float
    high: float
    disk: float
    temporary: float


@dataclass(frozen=True)
class Kind:
    """Functions of one kind of data.

    Attributes:
        command: command of the runs, a key of `study.commands.COMMANDS`, to which `--set` applies.
        managed: options of this command that `compare` sets itself, each with the option of
            `compare` to use instead.
        assumes: assumptions of the estimated cost, as a sentence.
        open: function from the settings that opens the data before networks are downloaded. It
            raises a UserError if they cannot be opened.
        tasks: function from `(settings, networks)` to the tasks. It raises a UserError if a run
            would fail: the data cannot be opened, or the options contradict each other.
        check: function from the settings that reads all images and prints its findings. It raises
            a UserError if the data are unusable.
        parts: function from `(settings, networks, tasks, groups)` to the parts of the study file,
            as plain values, see docs/guides/studies.md.
        short_parts: function from `(settings, networks, tasks)` to the parts of a study of short
            runs, which measure the time.
        cost: function from `(run, short runs, networks, tasks)` to the expected cost of a run.
    """

    command: str
    managed: dict[str, str]
    assumes: str
    open: Callable[[CompareSettings], None]
    tasks: Callable[[CompareSettings, Sequence[Network]], list[Task]]
    check: Callable[[CompareSettings], None]
    parts: Callable[
        [CompareSettings, Sequence[Network], Sequence[Task], Sequence[TrialGroup]], list[dict]
    ]
    short_parts: Callable[[CompareSettings, Sequence[Network], Sequence[Task]], list[dict]]
    cost: Callable[[StudyRun, Sequence[Measured], Sequence[Network], Sequence[Task]], Cost]
