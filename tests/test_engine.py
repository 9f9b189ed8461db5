"""Training, evaluation and resuming, on a network of a few hundred numbers."""

from functools import partial

import pytest
import torch
from torch import nn

from classification import engine
from classification.attacks import pgd
from robust_backbones.errors import UserError

SETTINGS = {"lr": 0.1, "dataset": "blobs"}


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
                         nn.Linear(64, 2))  # fmt: skip


def sgd(model):
    return torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


def blobs(n=42):
    """Dark images of class 0, bright ones of class 1."""
    y = torch.arange(n) % 2
    noise = torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return 0.4 * noise + 0.6 * y.view(-1, 1, 1, 1), y


def train(model, optimizer, epochs, **kwargs):
    for epoch in epochs:
        batches = engine.train_batches(*blobs(), 8, engine.epoch_generator(0, epoch))
        stats = engine.train_one_epoch(model, batches, optimizer, lambda step: 0.05, **kwargs)
    return stats


def test_batches_are_full_shuffled_and_without_repeats():
    x = torch.arange(42.0).view(42, 1, 1, 1)
    read = partial(engine.train_batches, x, torch.arange(42), 8)
    batches = list(read(engine.epoch_generator(3, 0), lambda images: images + 0.5))
    labels = torch.cat([y for _, y in batches])
    assert [len(y) for _, y in batches] == [8] * 5 and len(set(labels.tolist())) == 40
    assert torch.equal(torch.cat([x for x, _ in batches]).flatten(), labels + 0.5)
    again, other = (torch.cat([y for _, y in read(engine.epoch_generator(3, e))]) for e in (0, 1))
    assert torch.equal(labels, again) and not torch.equal(labels, other)


def test_a_batch_larger_than_the_data():
    with pytest.raises(UserError, match="batch size 43 exceeds the 42 training images"):
        next(engine.train_batches(*blobs(), 43, torch.Generator()))


@pytest.mark.parametrize("total", [1, 2, 4, 100])
def test_one_cycle_rises_to_its_peak_and_falls(total):
    rates = [engine.one_cycle(step, total, 0.4) for step in range(total)]
    top = rates.index(max(rates))
    assert max(rates) == pytest.approx(0.4) and min(rates) > 0
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert total < 100 or (top == 24 and rates[-1] < 0.001)


def test_training_learns_and_counts():
    model = network()
    seen = []
    stats = train(model, sgd(model), range(4), progress=seen.append)
    assert stats["top1"] == 100 and stats["loss"] < 0.1
    assert stats["lr"] == 0.05 and stats["images"] == 40 and seen == [8] * 20
    assert model.training


def test_one_step_is_sgd_by_hand():
    model, twin = network(), network()
    x, y = blobs(8)
    optimizer = torch.optim.SGD(model.parameters(), 99.0)  # overruled by the schedule
    stats = engine.train_one_epoch(model, [(x, y)], optimizer, lambda step: 0.25)
    loss = nn.functional.cross_entropy(twin(x), y)
    gradients = torch.autograd.grad(loss, list(twin.parameters()))
    assert stats["loss"] == pytest.approx(loss.item())
    for new, old, gradient in zip(model.parameters(), twin.parameters(), gradients, strict=True):
        torch.testing.assert_close(new, old - 0.25 * gradient)


def test_the_update_sees_only_what_the_adversary_returns():
    x, y = blobs(8)
    calls = []

    def adversary(model, x, y):
        calls.append(model.training)
        return 1 - x

    model, twin = network(), network()
    engine.train_one_epoch(model, [(x, y)], sgd(model), lambda step: 0.1, adversary)
    engine.train_one_epoch(twin, [(1 - x, y)], sgd(twin), lambda step: 0.1)
    assert len(calls) == 1
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, twin.state_dict()[name])


def test_a_loss_that_is_not_finite_stops_before_the_update():
    model = network()
    nn.init.constant_(model[4].bias, float("inf"))
    before = model[0].weight.detach().clone()
    with pytest.raises(UserError, match="the loss became nan at step 1 with learning rate 0.05"):
        train(model, sgd(model), [0])
    assert torch.equal(model[0].weight, before)


def test_evaluate_clean_and_robust():
    model = network()
    train(model, sgd(model), range(4))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    x, y = blobs(30)
    strong = partial(pgd, constraint="linf", eps=0.5, steps=5, step_size=0.2)
    assert engine.evaluate(model, x, y, 7) == 100
    assert engine.evaluate(model, x, y, 7, strong) < 60
    assert engine.evaluate(model, x, 1 - y, 30) == 0
    assert not model.training
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def save(path, model, optimizer, epoch, history):
    engine.save_checkpoint(path, model=model, optimizer=optimizer, epoch=epoch, metadata={},
                           settings=SETTINGS, history=history)  # fmt: skip


def test_resuming_is_bit_for_bit(tmp_path):
    adversary = partial(pgd, constraint="l2", eps=0.5, steps=2, step_size=0.3)
    model = network()
    optimizer = sgd(model)
    train(model, optimizer, range(2), adversary=adversary)
    save(tmp_path / "c.pt", model, optimizer, 2, [{"epoch": 1}, {"epoch": 2}])
    train(model, optimizer, range(2, 4), adversary=adversary)

    other = network(seed=5)
    fresh = sgd(other)
    done, history = engine.load_checkpoint(
        tmp_path / "c.pt", model=other, optimizer=fresh, settings=SETTINGS
    )
    assert (done, history) == (2, [{"epoch": 1}, {"epoch": 2}])
    torch.manual_seed(99)  # the global generator must not matter
    train(other, fresh, range(done, 4), adversary=adversary)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_resuming_with_other_settings_or_from_other_files(tmp_path):
    model = network()
    optimizer = sgd(model)
    save(tmp_path / "c.pt", model, optimizer, 1, [])
    torch.save({"weight": torch.ones(1)}, tmp_path / "foreign.pt")
    load = partial(engine.load_checkpoint, model=model, optimizer=optimizer)
    with pytest.raises(UserError, match="lr is 0.1 there, 0.2 here; give the same ones"):
        load(tmp_path / "c.pt", settings=SETTINGS | {"lr": 0.2})
    with pytest.raises(UserError, match="foreign.pt is not an unfinished training run"):
        load(tmp_path / "foreign.pt", settings=SETTINGS)


def test_choosing_a_device():
    assert engine.choose_device("cpu") == torch.device("cpu")
    assert engine.choose_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match="device 'gpu9' cannot be used here; one of: .*cpu"):
        engine.choose_device("gpu9")


def test_the_progress_line_is_for_terminals_only(monkeypatch, capsys):
    engine.progress_line(0, 100, 2)(50)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    engine.progress_line(0, 100, 2)(50)
    assert "epoch 1/2: 50/100 images" in capsys.readouterr().err
