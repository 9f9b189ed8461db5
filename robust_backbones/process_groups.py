"""Process groups: their time-out, and errors that end all processes with one message."""

import contextlib
import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

from robust_backbones.core.errors import outcome, tell_torchrun

# The other processes wait in a collective while process 0 works alone: it fingerprints a million
# files, evaluates a detector or writes a checkpoint. On a busy network file system, that takes
# longer than the time-outs of PyTorch (10 minutes with NCCL) and Detectron2 (30 minutes). A failed
# process does not need the time-out, because `failing_together` ends the others.
TIMEOUT = timedelta(hours=4)
POLL = 0.5  # seconds between two looks for a failure of another process
PATIENCE = 10.0  # seconds that processes wait for each other before they exit
# Keys in the store: the failure, the number of processes that will end silently, and whether the
# error is printed. No process exits before, because `torchrun` would then terminate the others.
FAILURE, ENDED, DONE = "failure", "ended", "done"


@contextlib.contextmanager
def failing_together() -> Iterator[None]:
    """End all processes of the default process group if the block fails in one of them.

    The first process that fails prints its error, after the others have stopped printing. All exit
    with the same code. A process without others is not affected.

    A process that waits in a collective, even on a GPU, cannot notice that another one failed.
    Therefore, a thread of each process looks for failures in the store of the group. `SystemExit`
    is not a failure, because all processes agree to stop.
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        yield
        return
    store = dist.PrefixStore("failing_together", dist.distributed_c10d._get_default_store())
    finished = threading.Event()
    threading.Thread(target=_watch, args=(store.clone(), finished), daemon=True).start()
    try:
        yield
        # Process 0 may still fail when it writes the results. NCCL warns if no device is given.
        nccl = dist.get_backend() == dist.Backend.NCCL
        dist.barrier(device_ids=[torch.cuda.current_device()] if nccl else None)
    except SystemExit:
        raise
    except BaseException as error:
        _fail(store, error)
    finally:
        finished.set()


def _watch(store: dist.Store, finished: threading.Event) -> None:
    """End this process when another one has failed."""
    with contextlib.suppress(dist.DistError):  # the store is lost: its process has ended
        while not finished.wait(POLL):
            if store.check([FAILURE]):
                _end(store)
                return


def _fail(store: dist.Store, error: BaseException) -> NoReturn:
    """Print the error after the others have stopped printing, unless another one failed before."""
    code, text = outcome(error) or (1, "".join(traceback.format_exception(error)).rstrip())
    rank, patience, when = dist.get_rank(), PATIENCE, time.time()
    # gloo raises RuntimeError with the path of its source file, NCCL raises DistError.
    if isinstance(error, dist.DistError) or (type(error) is RuntimeError and "gloo" in str(error)):
        # Another process was killed, and `torchrun` presents the earliest failure as the cause.
        line = next(iter(str(error).splitlines()), "")
        text = (
            f"error: process {rank} lost the connection to another process, which was killed. The "
            f"machine may have too little memory. ({line})"
        )
        patience, when = 0.0, when + 2
    report = json.dumps({"rank": rank, "code": code, "time": when})
    with contextlib.suppress(dist.DistError):
        store.compare_set(FAILURE, "", report)
        _end(store)
        deadline = time.monotonic() + patience
        while store.add(ENDED, 0) < dist.get_world_size() - 1 and time.monotonic() < deadline:
            time.sleep(0.05)
    tell_torchrun(text, when)
    with contextlib.suppress(OSError, ValueError):  # closed or full streams
        sys.stdout.flush()
        print(text, end="\n" if text else "", file=sys.stderr, flush=True)
    with contextlib.suppress(dist.DistError):
        store.set(DONE, "yes")
    _exit(code)


def _end(store: dist.Store) -> None:
    """End this process, unless it is the one that failed first."""
    failure = json.loads(store.get(FAILURE))
    if failure["rank"] == dist.get_rank():
        return
    # torchrun presents the failure with the earliest time, in seconds, as the cause.
    tell_torchrun(f"ended because process {failure['rank']} failed", failure["time"] + 1)
    store.add(ENDED, 1)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    with contextlib.suppress(dist.DistError):
        store.wait([DONE], timedelta(seconds=PATIENCE))
    _exit(failure["code"])


def _exit(code: int) -> NoReturn:
    """Exit at once. Python's normal exit would wait for the group, which has lost a process."""
    if dist.get_rank() == 0:  # may have the store, which the others still read
        time.sleep(0.2)
    os._exit(code)
