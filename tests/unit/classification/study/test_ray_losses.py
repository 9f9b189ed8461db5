"""Lost nodes and clusters, with a stand-in for Ray."""

from types import SimpleNamespace

import pytest

from classification.study.execute import FAILED, FINISHED, LOST, Attempt
from classification.study.file import read_study
from tests.support.study_runs import allow, toy

pytest.importorskip("ray", reason="Ray is not installed")
from ray import exceptions

from classification.study import ray_executor


class FakeRay:
    """Ray whose tasks end at once, with the given outcomes or exceptions."""

    def __init__(self, *outcomes):
        self.outcomes, self.sessions = list(outcomes), 0

    def init(self, **options):
        self.sessions += 1

    def shutdown(self):
        pass

    def cluster_resources(self):
        return {"CPU": 2}

    def nodes(self):
        return [{"Alive": True, "Resources": {"CPU": 2}}]

    def remote(self, thing):
        handle = SimpleNamespace(remote=lambda *arguments: object())
        handle.options = lambda **options: handle
        return handle

    def wait(self, tasks, **options):
        return tasks, []

    def get(self, task):
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome, "node"


DIED = exceptions.LocalRayletDiedError("The local raylet died.")
NODE = exceptions.NodeDiedError("The node died.")


@pytest.mark.parametrize(
    ("outcome", "state", "error", "sessions"),
    [
        (DIED, LOST, "LocalRayletDiedError: ", 2),
        (NODE, LOST, "NodeDiedError: ", 1),
        (exceptions.WorkerCrashedError(), LOST, "WorkerCrashedError: ", 1),
        (exceptions.ObjectLostError("a" * 56, None, ""), LOST, "ObjectLostError: ", 1),
        (exceptions.OutOfMemoryError("Out of memory."), FAILED, "OutOfMemoryError: Out of mem", 1),
        (KeyError("x"), FAILED, "KeyError: 'x'", 1),
    ],
)
def test_a_lost_cluster_is_not_a_failed_run(tmp_path, monkeypatch, outcome, state, error, sessions):
    allow(monkeypatch)
    first, second = read_study(toy(tmp_path, 2))
    fake = FakeRay(outcome, Attempt(FINISHED))
    monkeypatch.setattr(ray_executor, "ray", fake)
    executor = ray_executor.RayExecutor(None)
    executor.start(first)
    ((run, attempt),) = executor.wait(0)
    assert run == first and attempt.state == state and attempt.error.startswith(error)
    executor.start(second)
    assert executor.wait(0) == [(second, Attempt(FINISHED))]
    assert fake.sessions == sessions  # after the loss of its raylet, the driver connects again


def test_a_cluster_that_does_not_come_back_is_waited_for(tmp_path, monkeypatch):
    allow(monkeypatch)
    first, second = read_study(toy(tmp_path, 2))
    fake = FakeRay(DIED)
    monkeypatch.setattr(ray_executor, "ray", fake)
    executor = ray_executor.RayExecutor(None)
    executor.start(first)
    executor.start(second)
    assert {attempt.state for _, attempt in executor.wait(0) + executor.wait(0)} == {LOST}
    monkeypatch.setattr(fake, "init", _gone)
    executor.start(first)
    assert not executor.has_room(second)
    ((run, attempt),) = executor.wait(0)
    assert run == first and attempt.state == LOST and "no Ray cluster responds" in attempt.error


def _gone(**options):
    raise ConnectionError("no cluster")
