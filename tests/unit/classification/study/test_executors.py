"""Studies on Ray give the same results as local ones, even if nodes or drivers die."""

import json
import sys
import time
from dataclasses import replace

import pytest

from classification.study.executors import Local
from classification.study.file import read_study
from classification.study.options import parser
from classification.study.queue import Queue
from classification.study.run import make_executor
from robust_backbones.core.errors import UserError
from tests.support.study_drivers import driver, wait_for
from tests.support.study_runs import allow, ends, starts, toy

ray = pytest.importorskip("ray", reason="Ray is not installed")
from classification.study import ray_executor  # noqa: E402
from classification.study.ray_executor import RayExecutor  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    allow(monkeypatch)
    yield
    ray.shutdown()


@pytest.fixture
def cluster():
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        made.add_node(num_cpus=1)
    made.wait_for_nodes()
    yield made
    ray.shutdown()
    made.shutdown()


def contents(runs) -> list[dict]:
    """Results, without what may differ."""
    found = [json.loads(run.result.read_text()) for run in runs]
    return [{key: row[key] for key in ("metrics", "seconds", "threads", "gpus")} for row in found]


def test_processes_one_node_and_three_give_the_same(tmp_path, cluster, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = []
    for name, make in (
        ("local", lambda: Local(2)),
        ("one", lambda: RayExecutor(None)),
        ("three", lambda: RayExecutor(cluster.address)),
    ):
        (tmp_path / name).mkdir()
        runs = read_study(toy(tmp_path / name, 6))
        executor = make()
        try:
            queue = Queue(runs, executor)
            assert queue.work() and not queue.failed
        finally:
            executor.close()
        assert [len(starts(run)) for run in runs] == [1] * 6
        found.append(contents(runs))
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize(
    "cpus, assigned, node, cores",
    [
        (1, {"CPU": 1}, {"CPU": 64}, 1),
        (1, {"CPU": 1, "GPU": 0.5}, {"CPU": 64, "GPU": 8}, 4),
        (12, {"CPU": 12, "GPU": 1}, {"CPU": 64, "GPU": 8}, 12),
    ],
)
def test_a_run_on_a_gpu_of_a_ray_node_gets_cores_to_load_images(
    tmp_path, cpus, assigned, node, cores
):
    (run,) = read_study(toy(tmp_path, 1))
    assert ray_executor._cores(replace(run, cpus=cpus), assigned, node) == cores


def test_a_node_that_dies_loses_nothing(tmp_path, cluster):
    runs = read_study(toy(tmp_path, 8, sleep=1.5))
    executor = RayExecutor(cluster.address)
    nodes = list(cluster.worker_nodes)
    killed = []

    def told(run, outcome, queue):
        if not killed:
            killed.append(nodes[0])
            cluster.remove_node(nodes[0], allow_graceful=False)

    queue = Queue(runs, executor, pause=0.3, on_end=told)
    assert queue.work() and killed and not queue.failed
    assert len(queue.finished) == 8 and all(run.result.exists() for run in runs)
    assert [ends(run) for run in runs] == [1] * 8  # none was made twice


def test_a_driver_that_is_killed_loses_nothing(tmp_path, cluster):
    file = toy(tmp_path, 6, sleep=1.0)
    runs = read_study(file)
    words = ("run", file, "--executor", "ray", "--address", cluster.address, "--pause", "0.3")
    first = driver(*words)
    wait_for(lambda: any(run.result.exists() for run in runs))
    first.kill()
    first.wait()
    second = driver(*words)
    out, _ = second.communicate(timeout=120)
    assert second.returncode == 0, out
    assert [ends(run) for run in runs] == [1] * 6


def test_a_stopped_study_stops_its_tasks(tmp_path, cluster):
    runs = read_study(toy(tmp_path, 2, sleep=60))
    executor, began = RayExecutor(cluster.address), time.time()
    queue = Queue(runs, executor)
    assert not queue.work(lambda: all(starts(run) for run in runs))
    assert time.time() - began < 50 and all((run.folder / "saved").exists() for run in runs)


def test_a_run_goes_where_its_features_are(tmp_path, cluster):
    file = toy(tmp_path, 3, weights="w", dataset="d")
    runs = read_study(file)
    executor = RayExecutor(cluster.address)
    hosts = []
    for run in runs:
        executor.start(run)
        while not (ended := executor.wait(0.2)):
            pass
        hosts.append(executor._nodes[("w", "d", "None")])
        assert ended[0][1].state == "finished"
    assert len(set(hosts)) == 1


def test_no_cluster_no_ray(monkeypatch, tmp_path):
    with pytest.raises(UserError, match="--address 127.0.0.1:1: no Ray cluster responds"):
        RayExecutor("127.0.0.1:1")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        patch.delitem(sys.modules, "classification.study.ray_executor")
        args = parser("").parse_args(["run", "s.yaml", "--executor", "ray"])
        with pytest.raises(UserError, match='Run: pip install "ray>=2.40"'):
            make_executor(args, [])
