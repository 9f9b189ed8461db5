"""Several processes of a command, as `torchrun` starts them, but without importing torch again.

A fork server imports torch and the commands once. Each process of a run is a fork of it.
"""

import importlib
import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        "classification.pretrain.run",
        "classification.robustness_eval.run",
        "classification.transfer.run",
        "robust_backbones.detection.launch",
        "tests.support.detector_processes",
        "tests.support.distributed_sums",
        "tests.support.process_faults",
    ]
)


def watch_starts(monkeypatch) -> list[multiprocessing.Process]:
    """Return a list that grows by each process that this process starts with multiprocessing."""
    started, start = [], multiprocessing.Process.start

    def watched(process):
        started.append(process)
        start(process)

    monkeypatch.setattr(multiprocessing.Process, "start", watched)
    return started


@dataclass(frozen=True)
class Done:
    """A finished process. `code` is negative if a signal ended it."""

    code: int
    stdout: str
    stderr: str

    @property
    def errors(self) -> list[str]:
        """Lines of stderr, without warnings of libraries."""
        lines = self.stderr.replace("\r", "\n").splitlines()
        return [line for line in lines if line.startswith(("error:", "Traceback"))]


def start(folder: Path, count: int, module: str, *args, prepare: Callable | None = None) -> list:
    """Start `module.main(args)` in `count` processes.

    Args:
        folder: new folder for the output of the processes.
        count: number of processes.
        module: module of a command.
        args: its command line.
        prepare: function that is called before, in each process.
    """
    folder.mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [str(a) for a in args]
    started = []
    for rank in range(count):
        place = {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "TORCHELASTIC_ERROR_FILE": str(folder / f"{rank}.json"),
        }
        arguments = (folder / str(rank), place, module, words, prepare)
        process = SERVER.Process(target=_main, args=arguments, daemon=False)
        process.start()
        started.append(process)
    return started


def finish(folder: Path, started: list) -> list[Done]:
    """Wait for the processes."""
    found = []
    for rank, process in enumerate(started):
        process.join(240)
        if process.exitcode is None:
            for other in started:
                other.kill()
        texts = [(folder / f"{rank}.{name}").read_text() for name in ("out", "err")]
        assert process.exitcode is not None, texts
        found.append(Done(process.exitcode, *texts))
    return found


def run(folder: Path, count: int, module: str, *args, prepare: Callable | None = None) -> list:
    """Start the processes and wait for them."""
    return finish(folder, start(folder, count, module, *args, prepare=prepare))


def _main(output: Path, place: dict, module: str, words: list[str], prepare) -> None:
    for number, name in ((1, "out"), (2, "err")):
        descriptor = os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT)
        os.dup2(descriptor, number)
    sys.stdout, sys.stderr = (open(n, "w", encoding="utf-8", closefd=False) for n in (1, 2))
    os.environ.update(place)
    if prepare:
        prepare()
    importlib.import_module(module).main(words)
    sys.stdout.flush()
    sys.stderr.flush()
