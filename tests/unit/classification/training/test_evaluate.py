"""Devices, evaluation and stop signals, with a network of a few hundred parameters."""

import os
import signal
from functools import partial

import pytest
import torch
from torch import nn

from classification.training.evaluate import evaluate
from classification.training.launch import choose_device, loading_workers
from classification.training.learner import Learner
from robust_backbones.attacks import pgd
from robust_backbones.core.errors import UserError
from robust_backbones.core.signals import Stopped, StopSignals
from tests.support.small_models import blobs, learning, trained_on


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
    )
    learner = Learner(network, learning(method="standard"))
    for seed in range(12):
        trained_on(learner, *blobs(), 0.05, seed)
    return learner.model


def batches(x, y, size=7):
    return zip(x.split(size), y.split(size), strict=True)


def test_evaluate_clean_and_robust(trained):
    state = {k: v.clone() for k, v in trained.state_dict().items()}
    x, y = blobs(30)
    strong = partial(pgd, constraint="linf", eps=0.5, steps=5, step_size=0.2)
    clean = evaluate(trained, batches(x, y))
    assert clean.top1 == 100 and clean.images == 30
    expected = nn.functional.cross_entropy(trained(x), y).item()
    assert clean.loss == pytest.approx(expected, rel=1e-4)
    assert evaluate(trained, batches(x, y), strong).top1 < 60
    assert evaluate(trained, batches(x, 1 - y, 30)).top1 == 0
    assert not trained.training
    assert all(torch.equal(v, state[k]) for k, v in trained.state_dict().items())


def test_no_images(trained):
    with pytest.raises(UserError, match="there are no images to evaluate on. Give"):
        evaluate(trained, [])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_set_a_flag_and_the_handlers_are_restored(number):
    before = signal.getsignal(number)
    with StopSignals().watch() as signals:
        assert not signals.requested
        os.kill(os.getpid(), number)
        assert signals.requested
        if number == signal.SIGINT:
            with pytest.raises(KeyboardInterrupt):
                os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_an_evaluation_stops_between_batches(trained):
    signals, seen = StopSignals(), []

    def until_asked():
        for x, y in batches(*blobs(30)):
            seen.append(len(y))
            signals.requested = len(seen) == 2
            yield x, y

    with pytest.raises(Stopped):
        evaluate(trained, until_asked(), stop=signals)
    assert len(seen) == 2


def test_choosing_a_device():
    assert choose_device("cpu") == torch.device("cpu")
    cuda = torch.cuda.is_available()
    assert choose_device(None).type == ("cuda" if cuda else "cpu")
    for name in ("gpu9", "meta"):
        with pytest.raises(
            UserError, match=f"--device {name}: torch cannot use this device. Choose from .*cpu"
        ):
            choose_device(name)


def test_the_number_of_loading_workers(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(12), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    for device, wanted, most, workers in [
        ("cpu", None, 16, 0),
        ("cpu", 3, 16, 3),
        ("meta", None, 16, 6),
        ("meta", None, 4, 4),
    ]:
        assert loading_workers(wanted, torch.device(device), most) == workers
