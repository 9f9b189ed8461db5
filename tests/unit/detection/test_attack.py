"""PGD on detectors: where it ends, what it leaves as it was, and that it follows the gradient."""

import copy
import random

import numpy as np
import pytest
import torch

from robust_backbones.attacks import CONSTRAINTS
from robust_backbones.core.eps import STEP_FACTOR
from robust_backbones.core.errors import UserError
from robust_backbones.detection import attack
from tests.support.small_detectors import RETINANET, batch, tiny_config, tiny_detector


@pytest.fixture(scope="module")
def cfg():
    return tiny_config()


@pytest.fixture(scope="module")
def detector(cfg):
    return tiny_detector(cfg).eval().requires_grad_(False)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def pgd(model, items, constraint="linf", eps=8 / 255, steps=3, seed=0, **more):
    more = {"step_size": STEP_FACTOR * eps / max(steps, 1)} | more
    return attack.pgd(
        model, items, constraint=constraint, eps=eps, steps=steps, generator=seeded(seed), **more
    )


BALLS = [("linf", 4 / 255), ("linf", 64 / 255), ("l2", 0.5), ("l2", 30.0)]


@pytest.mark.parametrize(("constraint", "eps"), BALLS)
def test_images_stay_in_the_ball_and_in_range(detector, cfg, constraint, eps):
    items = batch(cfg, sizes=(96, 80))  # of two sizes, hence padded
    images = pgd(detector, items, constraint, eps)
    for x, item in zip(images, items, strict=True):
        assert x.shape == item["image"].shape
        assert x.dtype == torch.float32 and not x.requires_grad
        assert 0 <= x.min() and x.max() <= 255
        difference = (x - item["image"]).double() / 255
        order = {"l2": 2, "linf": torch.inf}[constraint]
        norm = torch.linalg.vector_norm(difference, ord=order).item()
        assert 0.3 * eps < norm <= eps * (1 + 1e-5)


@pytest.mark.parametrize("loss", list(attack.LOSSES))
def test_the_chosen_loss_rises(detector, cfg, loss):
    items = batch(cfg)
    images = pgd(detector, items, steps=5, loss=loss)
    attacked = [{**item, "image": x} for item, x in zip(items, images, strict=True)]
    before = attack.detection_loss(detector, items, loss=loss, seed=1)
    assert attack.detection_loss(detector, attacked, loss=loss, seed=1) > before


def test_losses_add_up_to_all(detector, cfg):
    parts = [
        attack.detection_loss(detector, batch(cfg), loss=loss, seed=1)
        for loss in ("classification", "localization", "mask", "all")
    ]
    assert sum(parts[:3]) == pytest.approx(parts[3], rel=1e-5)


def test_the_loss_uses_all_anchors_and_regions(detector, cfg):
    """So nothing is left to chance, unlike in training."""
    same, sampled = [], []
    for seed in (1, 2):
        same.append(attack.detection_loss(detector, batch(cfg), loss="all", seed=seed))
        with attack._training_losses(detector, sampled=True), torch.no_grad():
            sampled.append(attack._chosen(detector, batch(cfg), "all", seed).item())
    assert same[0] == pytest.approx(same[1], rel=1e-5)
    assert sampled[0] != pytest.approx(sampled[1], rel=1e-5)
    assert detector.proposal_generator.batch_size_per_image == 64  # as configured
    assert detector.roi_heads.batch_size_per_image == 32


@pytest.mark.parametrize(
    ("sizes", "loss"), [((96,), "all"), ((80,), "all"), ((80,), "classification")]
)
def test_a_step_goes_along_the_gradient(detector, cfg, sizes, loss):
    """The gradient that Detectron2's own code gives for a single image, whose padding passes it."""
    (item,) = batch(cfg, numbers=(3,), sizes=sizes)
    item["image"] = item["image"].float().clamp(20, 235)  # no pixel ends at the range's border
    one_step = {"steps": 1, "step_size": 0.1, "random_start": False, "sampled": True}
    (moved,) = pgd(detector, [item], "l2", 0.5, loss=loss, **one_step)

    x = item["image"].clone().requires_grad_()
    model = copy.deepcopy(detector).train()  # FrozenBN: no statistics
    torch.manual_seed(*attack.draw_seeds(seeded()))
    with attack.EventStorage():
        losses = model([{**item, "image": x}])
    wanted = [value for name, value in losses.items() if loss == "all" or "cls" in name]
    (gradient,) = torch.autograd.grad(sum(wanted), [x])
    assert torch.allclose(moved, item["image"] + 25.5 * gradient / gradient.norm(), atol=2e-3)


def state(model) -> list:
    """All that a use of the model could change."""
    tensors = [(name, tensor.clone()) for name, tensor in model.state_dict().items()]
    modules = [
        {key: value for key, value in vars(module).items() if not key.startswith("_")}
        for module in model.modules()
    ]
    grads = [p.grad if p.grad is None else p.grad.clone() for p in model.parameters()]
    needs = [p.requires_grad for p in model.parameters()]
    return [tensors, modules, grads, needs]


def equal(left, right) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(equal, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(equal(left[key], right[key]) for key in left)
    return left is right or left == right


ARCHITECTURES = {"Mask R-CNN": {}, "RetinaNet": RETINANET}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_model_and_the_random_state_are_left_as_they_were(name, training):
    """Even a model with live BatchNorm, a submodule in another mode, gradients, and pictures for
    its log."""
    cfg = tiny_config(**ARCHITECTURES[name], **{"MODEL.RESNETS.NORM": "BN", "VIS_PERIOD": "1"})
    model = tiny_detector(cfg).train(training)
    model.backbone.bottom_up.res3.train(not training)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)
    items = batch(cfg)
    images = [item["image"].clone() for item in items]
    before = state(model)
    numbers = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    moved = pgd(model, items, steps=2)
    attack.detection_loss(model, items, loss="all", seed=3)
    assert equal(before, state(model))
    assert "preprocess_image" not in vars(model)
    assert torch.equal(numbers[0], torch.get_rng_state())
    assert numbers[1:] == (random.getstate(), np.random.get_state()[1].tolist())
    for x, item, image in zip(moved, items, images, strict=True):
        assert torch.equal(item["image"], image)
        assert not torch.equal(x, image.float())


def test_a_model_that_fails_is_left_as_it_was(detector, cfg):
    items = batch(cfg)
    items[1]["instances"].remove("gt_masks")
    before = state(detector)
    with pytest.raises((AttributeError, KeyError)):
        pgd(detector, items)
    assert equal(before, state(detector))


def test_it_attacks_in_eval_statistics():
    """With live BatchNorm in training mode, images would depend on each other through the batch's
    statistics; a fixed twin gives the same attack."""
    live = tiny_config(**{"MODEL.RESNETS.NORM": "BN"})
    frozen = tiny_detector(tiny_config())
    model = tiny_detector(live).train()
    frozen.load_state_dict({k: v for k, v in model.state_dict().items() if "num_batches" not in k})
    items = batch(live)
    for a, b in zip(pgd(model, items, steps=1), pgd(frozen, items, steps=1), strict=True):
        assert (a - b).abs().gt(1e-3).float().mean() < 0.01  # a sign that rounding tips over


def test_randomness_is_the_generators(detector, cfg):
    items = batch(cfg)
    first, again, other = (pgd(detector, items, steps=2, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_eps_0_moves_nothing(detector, cfg):
    items = batch(cfg)
    for x, item in zip(pgd(detector, items, eps=0.0), items, strict=True):
        assert torch.equal(x, item["image"].float())


@pytest.mark.parametrize("loss", ["all", "localization"])
def test_an_image_without_objects(detector, cfg, loss):
    """Background has losses, too; without any that depends on the image it keeps still."""
    (item,) = batch(cfg, numbers=(0,))
    item["instances"] = item["instances"][:0]
    (x,) = pgd(detector, [item], random_start=False, loss=loss)
    assert torch.equal(x, item["image"].float()) == (loss == "localization")


def test_a_gradient_that_is_not_finite_moves_nothing():
    x = torch.full((3, 4, 4), 100.0)
    for rule in CONSTRAINTS.values():
        for value in (0.0, torch.nan, torch.inf):
            gradient = torch.zeros(3, 4, 4)
            gradient[0, 0, 0] = value
            assert torch.equal(rule.step(x, gradient, 2.0), x)


def test_tiny_gradients_give_whole_steps():
    x, gradient = torch.zeros(3, 4, 4), torch.full((3, 4, 4), 1e-30)
    assert CONSTRAINTS["l2"].step(x, gradient, 2.0).norm().item() == pytest.approx(2)


def test_a_distributed_wrapper_is_looked_into(detector, cfg, tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        model = tiny_detector(cfg)
        wrapped = torch.nn.parallel.DistributedDataParallel(model)
        pairs = zip(pgd(wrapped, batch(cfg), steps=1), pgd(model, batch(cfg), steps=1), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    finally:
        torch.distributed.destroy_process_group()


MISTAKES = [
    ({"constraint": "l1"}, "constraint 'l1' is unknown. Choose from l2, linf"),
    (
        {"loss": "boxes"},
        "loss 'boxes' is unknown. Choose from all, classification, localization, mask",
    ),
    ({"eps": -1.0}, "eps is -1.0. It must be a finite number of at least 0"),
    ({"eps": float("nan"), "step_size": 1.0}, "eps is nan"),
    ({"step_size": float("inf")}, "step_size is inf"),
    ({"steps": 0, "step_size": 1.0}, "steps is 0; it must be at least 1"),
]


@pytest.mark.parametrize(("wrong", "message"), MISTAKES, ids=[m[:20] for _, m in MISTAKES])
def test_mistakes(detector, cfg, wrong, message):
    with pytest.raises(UserError, match=message):
        pgd(detector, batch(cfg), **wrong)


def test_inference_mode_is_named(detector, cfg):
    items = batch(cfg)
    with torch.inference_mode(), pytest.raises(UserError, match="torch.inference_mode is on"):
        pgd(detector, items)


def test_truth_is_needed(detector, cfg):
    items = [{"image": item["image"]} for item in batch(cfg)]
    with pytest.raises(UserError, match="no 'instances'.*DatasetMapper.is_train=True"):
        pgd(detector, items)


def test_a_loss_that_the_detector_has_not():
    model = tiny_detector(tiny_config(**{"MODEL.MASK_ON": "False"}))
    with pytest.raises(UserError, match="no mask loss, only loss_cls, .*Choose another"):
        pgd(model, batch(tiny_config()), loss="mask")
