"""Settings of a training run, and their allowed values.

This module does not import torch, because command-line parsers import it.
"""

import math
from dataclasses import asdict, dataclass

from robust_backbones.core.eps import default_step
from robust_backbones.core.precision import DEFAULT

# Names of augmentations. `transforms.AUGMENTATIONS` has the implementations.
AUGMENTATIONS = ("none", "shift2", "crop4_flip", "crop4_flip_color", "imagenet", "imagenet_plain")

OPTIMIZERS = ("sgd", "adamw")


@dataclass(frozen=True)
class AttackSettings:
    """Parameters of a PGD attack on images in [0, 1].

    Attributes:
        constraint: norm of the perturbation, `"l2"` or `"linf"`.
        eps: perturbation radius; 0 leaves the images unchanged.
        steps: number of gradient steps.
        step_size: length of one step, in the unit of eps.
        random_start: whether the attack starts at a random point of the ball.
        use_best: whether the attack returns the iterate of highest loss instead of the last one.
    """

    constraint: str = "l2"
    eps: float = 0.0
    steps: int = 1
    step_size: float = 0.0
    random_start: bool = False
    use_best: bool = False


def evaluation_attack(constraint: str, eps: float, steps: int) -> AttackSettings:
    """Return the attack that measures robust accuracy.

    The attack starts at a random point, because the gradient of a confident model can vanish at
    the clean image.
    """
    step_size = default_step(eps, steps)
    return AttackSettings(constraint, eps, steps, step_size, random_start=True, use_best=True)


@dataclass(frozen=True)
class MethodDefaults:
    """Defaults and properties of a training method. `methods.METHODS` has the implementation.

    Attributes:
        steps, random_start, use_best: as in `AttackSettings`.
        step_size: length of one step, in multiples of eps.
        lr_schedule: learning-rate schedule of the method's authors, key of `recipes.SCHEDULES`;
            None: use the recipe's schedule.
        runs_attack: whether the adversarial images come from an attack before the update.
        replays: whether each batch gives `steps` updates in a row.
        guarded: whether robustness can collapse within an epoch (catastrophic overfitting). If
            True, every epoch ends with a check.
    """

    steps: int = 1
    step_size: float = 1.0
    random_start: bool = False
    use_best: bool = False
    lr_schedule: str | None = None
    runs_attack: bool = False
    replays: bool = False
    guarded: bool = False

    def attack(self, constraint: str, eps: float) -> AttackSettings:
        """Return the default training attack of this method.

        Args:
            constraint, eps: as in `AttackSettings`.
        """
        size = self.step_size * eps
        return AttackSettings(constraint, eps, self.steps, size, self.random_start, self.use_best)


METHOD_DEFAULTS = {
    "standard": MethodDefaults(),
    # PGD (Madry et al. 2018, arXiv 1706.06083) with the parameters of the published models.
    "pgd": MethodDefaults(3, 2 / 3, use_best=True, runs_attack=True),
    # FGSM from a random start (Wong et al. 2020, arXiv 2001.03994).
    "fast": MethodDefaults(
        1, 1.25, random_start=True, lr_schedule="cyclic", runs_attack=True, guarded=True
    ),
    # Free training (Shafahi et al. 2019, arXiv 1904.12843).
    "free": MethodDefaults(4, 1.0, random_start=True, replays=True),
    # TRADES (Zhang et al. 2019, arXiv 1901.08573). The gradient of the KL divergence is zero at the
    # clean image, so the attack starts at a random point.
    "trades": MethodDefaults(10, 0.25, random_start=True, runs_attack=True),
}


@dataclass(frozen=True)
class TrainSettings:
    """Settings for training a classifier.

    Attributes:
        method: key of `METHOD_DEFAULTS`.
        attack: training attack.
        beta: weight of the KL divergence in TRADES.
        epochs: number of epochs for methods with one update per batch; see `data_epochs`.
        batch_size: images per update, over all processes.
        lr: peak learning rate.
        lr_schedule: key of `recipes.SCHEDULES`.
        warmup: length of the linear learning-rate warm-up, in epochs.
        optimizer: `"sgd"` or `"adamw"`.
        momentum: momentum of SGD; decay of AdamW's average of the gradients.
        nesterov: whether SGD uses Nesterov momentum.
        beta2: decay of AdamW's average of the squared gradients.
        weight_decay: factor of the L2 penalty on all parameters (SGD), or of the decoupled weight
            decay of all weights except biases and norms (AdamW).
        layer_decay: factor of the learning rate from each layer to the layer below it, in (0, 1];
            AdamW only.
        drop_path: probability of skipping the last residual block in training, in [0, 1).
        augmentation: one of `AUGMENTATIONS`.
        label_smoothing: fraction of the label that is spread over all classes, in [0, 1).
        ema: decay of the exponential moving average of the weights, in [0, 1); 0: no averaging.
        seed: seed for the order of the images, their augmentation, the attack and dropout.
        precision: precision of training steps, a key of `core.precision.PRECISIONS`.
        accumulate: number of gradient accumulation steps per update.
        compile: whether to use `torch.compile`.
    """

    method: str = "pgd"
    attack: AttackSettings = AttackSettings()
    beta: float = 6.0
    epochs: int = 1
    batch_size: int = 64
    lr: float = 0.1
    lr_schedule: str = "constant"
    warmup: float = 0.0
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    beta2: float = 0.999
    layer_decay: float = 1.0
    drop_path: float = 0.0
    weight_decay: float = 0.0
    augmentation: str = "none"
    label_smoothing: float = 0.0
    ema: float = 0.0
    seed: int = 0
    precision: str = DEFAULT
    accumulate: int = 1
    compile: bool = False

    @property
    def updates_per_batch(self) -> int:
        """Number of weight updates per batch."""
        return self.attack.steps if METHOD_DEFAULTS[self.method].replays else 1

    @property
    def data_epochs(self) -> int:
        """Number of passes over the images. Free training needs fewer passes than `epochs`."""
        return math.ceil(self.epochs / self.updates_per_batch)

    def to_json(self) -> dict:
        """Return all settings, including the attack's, as one flat dictionary."""
        fields = asdict(self)
        attack = fields.pop("attack")
        return fields | attack
