"""PGD on pixels: a plain reimplementation, the losses, the ball, and nothing is left over."""

import pytest
import torch

from tests.support import small_segmenters

# isort: split
from torch.nn import functional as F

from robust_backbones.attacks import CONSTRAINTS
from robust_backbones.core.errors import UserError
from robust_backbones.detection import semantic_attack
from robust_backbones.detection.semantic_attack import LOSSES, network_logits, pgd


@pytest.fixture(scope="module")
def cfg():
    return small_segmenters.tiny_config()


@pytest.fixture(scope="module")
def model(cfg):
    return small_segmenters.tiny_segmenter(cfg).eval()


@pytest.fixture
def batch(cfg, model):
    """Two scenes. The network is right on most of their pixels. Some have no label."""
    found = small_segmenters.batch(cfg, (3, 4))
    for item in found:
        with torch.no_grad():
            item["sem_seg"] = model([{"image": item["image"]}])[0]["sem_seg"].argmax(0)
        item["sem_seg"][20:30] = 3
    found[0]["sem_seg"][:10] = 255
    return found


def attack(model, batch, seed=0, **more):
    settings = dict(constraint="linf", eps=8 / 255, steps=3) | more
    return pgd(model, batch, generator=torch.Generator().manual_seed(seed), **settings)


def plain_weights(logits, labels, loss):
    """Weights of the pixels, from the papers."""
    probabilities = logits.softmax(1)
    if loss == "masked":
        return (logits.argmax(1) == labels).float()
    if loss == "cosine":
        hot = F.one_hot(labels.clamp(max=10), 11).permute(0, 3, 1, 2).float()
        return F.cosine_similarity(probabilities, hot, dim=1)
    return torch.ones_like(labels).float()


def plain_pgd(model, item, loss, constraint, eps, steps):
    """PGD by Detectron2's own forward pass, which has pixels in [0, 255]."""
    clean, labels = item["image"].float(), item["sem_seg"][None]
    x, eps, size = clean, 255 * eps, 255 * 2.5 * eps / steps
    for _ in range(steps):
        x = x.detach().requires_grad_()
        logits = model([{"image": x}])[0]["sem_seg"][None]
        each = F.cross_entropy(logits, labels, ignore_index=255, reduction="none")
        (g,) = torch.autograd.grad((plain_weights(logits, labels, loss).detach() * each).sum(), x)
        if constraint == "linf":
            x = clean + (x.detach() + size * g.sign() - clean).clamp(-eps, eps)
        else:
            step = x.detach() + size * g / g.norm() - clean
            x = clean + step * min(1, eps / step.norm())
        x = x.clamp(0, 255)
    return x


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("constraint", "eps"), [("linf", 8 / 255), ("l2", 1.0)])
def test_the_attack_is_plain_pgd(model, batch, constraint, eps, loss):
    settings = dict(constraint=constraint, eps=eps, loss=loss)
    for item in batch:
        (found,) = attack(model, [item], random_start=False, **settings)
        wanted = plain_pgd(model, item, steps=3, **settings)
        moved = wanted - item["image"]
        assert moved.abs().max() > 1
        assert (found - wanted).norm() < 0.01 * moved.norm()


def test_images_of_a_batch_are_attacked_as_alone(model, batch):
    """Up to rounding, which a random network amplifies in further steps."""
    together = attack(model, batch, steps=1, random_start=False)
    for found, item in zip(together, batch, strict=True):
        (alone,) = attack(model, [item], steps=1, random_start=False)
        assert (found != alone).float().mean() < 1e-3


def test_logits_are_those_of_detectron2(model, batch):
    """For images of unequal size, which are padded, and for one alone."""
    images = [item["image"].float() for item in batch]
    images[1] = images[1][:, :50, :33]
    with torch.no_grad():
        theirs = model([{"image": x} for x in images])
        ours = network_logits(model, images)
    for logits, output, x in zip(ours, theirs, images, strict=True):
        assert logits.shape[1:] == x.shape[1:]
        torch.testing.assert_close(logits, output["sem_seg"], rtol=1e-4, atol=1e-4)


def test_the_attack_raises_the_loss_inside_the_ball(model, batch):
    for constraint, eps in (("linf", 4 / 255), ("l2", 1.0)):
        for loss in LOSSES:
            found = attack(model, batch, constraint=constraint, eps=eps, loss=loss, steps=3)
            attacked = [{**item, "image": x} for item, x in zip(batch, found, strict=True)]
            for x, item in zip(found, batch, strict=True):
                norm = CONSTRAINTS[constraint].norm(x - item["image"].float()).item()
                assert norm <= 255 * eps * (1 + 1e-4) and 0 <= x.min() and x.max() <= 255
            losses = [
                semantic_attack.mean_loss(model, each, loss="cross-entropy")
                for each in (batch, attacked)
            ]
            accuracies = [semantic_attack.pixel_accuracies(model, e) for e in (batch, attacked)]
            assert losses[1] > losses[0]
            assert sum(accuracies[1]) <= sum(accuracies[0])


def test_random_starts_depend_on_the_generator_only(model, batch):
    torch.manual_seed(1)
    first = attack(model, batch)
    torch.manual_seed(2)
    again, other = attack(model, batch), attack(model, batch, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    assert all(
        torch.equal(a, b["image"].float())
        for a, b in zip(attack(model, batch, eps=0), batch, strict=True)
    )


def test_the_model_is_left_as_it_was(model, batch):
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    try:
        attack(model, batch)
        assert model.training and model.backbone.training
    finally:
        model.eval()
    assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_pixel_accuracies_count_labeled_pixels(model, batch):
    with torch.no_grad():
        labels = model([{"image": batch[0]["image"]}])[0]["sem_seg"].argmax(0)
    known = batch[0]["sem_seg"] != 255
    wanted = (labels == batch[0]["sem_seg"])[known].float().mean().item()
    assert semantic_attack.pixel_accuracies(model, batch)[0] == pytest.approx(wanted)
    batch[0]["sem_seg"][:] = 255
    assert semantic_attack.pixel_accuracies(model, batch)[0] == 0
    assert torch.isfinite(attack(model, batch, loss="masked")[0]).all()


MISTAKES = [
    (dict(loss="dice"), "loss 'dice' is unknown. Choose from cross-entropy, masked, cosine"),
    (dict(eps=4), "eps"),
    (dict(steps=0), "steps is 0"),
]


@pytest.mark.parametrize(("more", "message"), MISTAKES)
def test_mistakes_are_refused(model, batch, more, message):
    with pytest.raises(UserError, match=message):
        attack(model, batch, **more)


def test_labels_are_needed(model, batch):
    del batch[1]["sem_seg"]
    with pytest.raises(UserError, match="the batch has no 'sem_seg'"):
        attack(model, batch)
