"""Train a classifier, standard or adversarial -> checkpoint.pt, metrics.jsonl, result.json.

python -m classification.pretrain --data /data/imagenet --output output/pretrain/resnet50_l2_eps3
python -m classification.pretrain --dataset digits --arch resnet18 --output output/pretrain/digits
torchrun --nproc-per-node 8 -m classification.pretrain --data /data/imagenet --output ...

Exit codes: 0 finished, 2 a mistake of the user, 75 stopped by SIGTERM or Ctrl-C with all saved
(the same command with --resume goes on).
"""

import argparse
import math
import os
import sys
from functools import partial
from pathlib import Path

# torch, and what imports it, waits for `main`: --help is to come at once.
from classification import options
from classification.datasets import DATASETS
from classification.recipes import RECIPES, Recipe, scaled_lr
from robust_backbones import __version__, results
from robust_backbones.errors import UserError, user_errors
from robust_backbones.files import claimed
from robust_backbones.zoo import ARCHS

STOPPED = 75  # EX_TEMPFAIL: what schedulers take for "try again"
# Radius at which a standard model's robust accuracy is measured, where --eval-eps does not say.
STANDARD_EVAL_EPS = {"l2": 1.0, "linf": 8 / 255}
METHODS = ("standard", "pgd", "free", "fast", "trades")
AUGMENTATIONS = ("none", "shift2", "crop4_flip", "imagenet", "imagenet_plain")
SCHEDULES = ("step", "cosine", "cyclic", "one-cycle", "constant")
PRECISIONS = ("float32", "bfloat16", "float16")
RECIPE = "the recipe's"


def parser() -> argparse.ArgumentParser:
    """Options without a default of their own are absent unless given: a table decides on them."""
    formatter = partial(argparse.ArgumentDefaultsHelpFormatter, width=100)
    p = argparse.ArgumentParser(
        "python -m classification.pretrain", description=__doc__.split("\n")[0],
        formatter_class=formatter, argument_default=argparse.SUPPRESS,
        epilog="Recipes: " + "; ".join(f"{name}: {_words(row)}" for name, row in RECIPES.items()),
    )  # fmt: skip
    what = p.add_argument_group("what").add_argument
    what("--arch", choices=tuple(ARCHS), default="resnet50", help="network")
    what("--dataset", choices=tuple(DATASETS), default="imagenet", help="what to train on")
    what("--data", help="where the data set lies: a path, or for shards a URL too (default: none; "
         "embedded ones need none)")  # fmt: skip
    what("--image-size", type=options.count,
         help="height and width of the images, pixels (default: the data set's)")  # fmt: skip
    what("--limit", type=options.count,
         help="train on so many images only, balanced over the classes (default: all)")  # fmt: skip
    what("--test-limit", type=options.count,
         help="test on so many images only, balanced over the classes (default: all)")  # fmt: skip
    what("--output", type=Path, required=True, help="folder for this run, a path (no default)")
    how = p.add_argument_group("training").add_argument
    how("--recipe", choices=tuple(RECIPES),
        help="where the defaults below come from (default: the data set's)")  # fmt: skip
    how("--method", choices=METHODS, help="default: pgd; standard with --eps 0")
    how("--epochs", type=options.count,
        help=f"passes over the training images, a count; free makes as many updates in fewer "
        f"passes (default: {RECIPE})")  # fmt: skip
    how("--batch-size", type=options.batch,
        help="images per update, all processes together, at least 2 (default: "
        f"{RECIPE})")  # fmt: skip
    how("--lr", type=options.positive,
        help=f"highest learning rate, per update (default: {RECIPE}, times --batch-size / its "
        "batch size)")  # fmt: skip
    how("--lr-schedule", choices=SCHEDULES, help=f"default: {RECIPE}; cyclic for fast")
    how("--warmup", type=options.radius,
        help=f"epochs over which the rate rises, a number (default: {RECIPE})")  # fmt: skip
    how("--momentum", type=options.fraction, help=f"of SGD, in (0, 1) (default: {RECIPE})")
    how("--weight-decay", type=options.radius,
        help=f"L2 penalty on all parameters, a factor (default: {RECIPE})")  # fmt: skip
    how("--augmentation", choices=AUGMENTATIONS, help="default: the data set's")
    how("--label-smoothing", type=options.share, default=0.0, help="in [0, 1)")
    how("--ema", type=options.share, default=0.0,
        help="decay per update of averaged weights, which are then evaluated and kept; 0: "
        "none")  # fmt: skip
    how("--seed", type=options.seed, default=0, help="of weights, order, images, attack, a number")
    attack = p.add_argument_group("training attack").add_argument
    attack("--constraint", choices=tuple(STANDARD_EVAL_EPS), default="l2", help="norm of the ball")
    attack("--eps", type=options.radius,
           help="radius, pixels in [0, 1] (L2: whole image); 4/255 is understood; 0: standard "
           f"training (default: {RECIPE}; for linf 4/255)")  # fmt: skip
    attack("--steps", type=options.count,
           help="a count; for free: updates per mini-batch (default: the method's)")  # fmt: skip
    attack("--step-size", type=options.positive,
           help="length of one step, unit of --eps (default: the method's multiple of "
           "eps)")  # fmt: skip
    attack("--random-start", action=argparse.BooleanOptionalAction, help="begin at a random point "
           "of the ball (default: the method's)")  # fmt: skip
    attack("--use-best", action=argparse.BooleanOptionalAction, help="of all steps the one with "
           "the highest loss, else the last (default: the method's)")  # fmt: skip
    attack("--beta", type=options.positive, default=6.0, help="weight of TRADES' second term")
    test = p.add_argument_group("evaluation at the end").add_argument
    test("--eval-eps", type=options.positive,
         help="radius of the attack, unit of --eps (default: --eps; for a standard model 1.0 for "
         "l2, 8/255 for linf)")  # fmt: skip
    test("--eval-steps", type=options.count, default=10,
         help="steps of the attack, a count; each is 2.5*radius/steps long")  # fmt: skip
    run = p.add_argument_group("running").add_argument
    run("--resume", choices=("auto", "must"), nargs="?", const="auto", default=None,
        help="go on with an unfinished run in --output; auto: if there is one")  # fmt: skip
    run("--save-seconds", type=options.radius, default=600.0,
        help="longest time between two checkpoints, seconds")  # fmt: skip
    run("--device", help="torch device (default: cuda if there is one, else cpu)")
    run("--workers", type=options.whole, default=0,
        help="processes that read images, for each training process; 0: it reads "
        "itself")  # fmt: skip
    run("--precision", choices=PRECISIONS, default="float32",
        help="of training and its attack; weights and projections are float32")  # fmt: skip
    run("--accumulate", type=options.count, default=1,
        help="pieces to cut each process's part of a mini-batch into, a count; saves "
        "memory")  # fmt: skip
    run("--sync-bn", action="store_true", default=False,
        help="BatchNorm over the images of all processes")  # fmt: skip
    run("--compile", action="store_true", default=False, help="use torch.compile")
    run("--deterministic", action="store_true", default=False,
        help="equal numbers in each run on the same GPUs too, slower")  # fmt: skip
    return p


def _words(row: Recipe) -> str:
    return (f"eps {row.eps:g}, {row.epochs} epochs, batch {row.batch_size}, lr {row.lr:g} "
            f"{row.schedule}, weight decay {row.weight_decay:g}")  # fmt: skip


def main(argv=None) -> None:
    """Parse, train, write. Exit codes as said above."""
    args = parser().parse_args(argv)
    with user_errors():
        settings = _settings(args)
        if results.finished(args.output / "result.json", settings):
            return
        _train(args, settings)


def _settings(args) -> dict:
    """All that decides the numbers of the run, in plain JSON types."""
    from classification.methods import METHODS

    row = DATASETS[args.dataset]
    recipe_name = getattr(args, "recipe", row.recipe)
    recipe = RECIPES[recipe_name]
    method, eps = _method_and_eps(args, recipe)
    options.check_radius("--eps", args.constraint, eps)
    given = partial(getattr, args)
    attack = {"steps": 1, "step_size": 1.0, "random_start": False, "use_best": False}
    attack |= METHODS[method].attack
    attack["step_size"] *= eps
    attack = {name: given(name, value) for name, value in attack.items()}
    batch_size = given("batch_size", recipe.batch_size)
    epochs = given("epochs", recipe.epochs)
    eval_eps = given("eval_eps", eps or STANDARD_EVAL_EPS[args.constraint])
    options.check_radius("--eval-eps", args.constraint, eval_eps)
    return {
        "arch": args.arch,
        "dataset": args.dataset,
        "image_size": given("image_size", row.image_size),
        "limit": given("limit", None),
        "test_limit": given("test_limit", None),
        "recipe": recipe_name,
        "method": method,
        "constraint": args.constraint,
        "eps": eps,
        **attack,
        "beta": args.beta,
        "epochs": epochs,
        # Shafahi et al. 2019: as many updates as the others make, not as many passes.
        "passes": math.ceil(epochs / METHODS[method].updates(attack)),
        "batch_size": batch_size,
        "optimizer": "sgd",
        "lr": given("lr", scaled_lr(recipe, batch_size)),
        "lr_schedule": given("lr_schedule", METHODS[method].schedule or recipe.schedule),
        "warmup": given("warmup", recipe.warmup),
        "momentum": given("momentum", recipe.momentum),
        "nesterov": recipe.nesterov,
        "weight_decay": given("weight_decay", recipe.weight_decay),
        "augmentation": given("augmentation", row.augmentation),
        "smoothing": args.label_smoothing,
        "ema": args.ema,
        "seed": args.seed,
        "precision": args.precision,
        "accumulate": args.accumulate,
        "sync_bn": args.sync_bn,
        "compile": args.compile,
        "deterministic": args.deterministic,
        "evaluation": {
            "attack": "pgd",
            "constraint": args.constraint,
            "eps": eval_eps,
            "steps": args.eval_steps,
            "step_size": 2.5 * eval_eps / args.eval_steps,
            # A confident model's gradient can vanish at the clean image; elsewhere it need not.
            "random_start": True,
            "use_best": True,
        },
    }


def _method_and_eps(args, recipe: Recipe) -> tuple[str, float]:
    """Standard training and a radius of 0 are the same; each implies the other."""
    method, eps = getattr(args, "method", None), getattr(args, "eps", None)
    if method is None:
        method = "standard" if eps == 0 else "pgd"
    if eps is None:
        usual = {"l2": recipe.eps, "linf": 4 / 255}[args.constraint]
        eps = 0.0 if method == "standard" else usual
    if (method == "standard") != (eps == 0):
        raise UserError(
            f"--method {method} with --eps {eps:g}: standard training has eps 0, the other methods "
            "one above 0; leave one of the two out."
        )
    return method, eps


def _train(args, settings: dict) -> None:
    from classification import distributed, engine

    if args.deterministic:
        _be_deterministic()
    wanted = engine.choose_device(getattr(args, "device", None))
    with distributed.group(wanted) as device, _owned(args.output):
        started = (args.output / "checkpoint.pt").exists()
        if started and args.resume is None:
            raise UserError(
                f"{args.output} holds an unfinished run; pass --resume to go on with it, or choose "
                "another --output."
            )
        if not started and args.resume == "must" and distributed.rank() == 0:
            raise UserError(f"{args.output} holds no run to resume; leave --resume must out.")
        training = _training(args, settings, device)
        try:
            training.run()
        except engine.Stopped:
            if distributed.rank() == 0:
                print(f"stopped; all is saved in {args.output}. Go on with --resume.", flush=True)
            sys.exit(STOPPED)


def _owned(output: Path):
    """For process 0: nobody else writes into the folder."""
    from contextlib import nullcontext

    from classification import distributed

    return claimed(output) if distributed.rank() == 0 else nullcontext()


def _be_deterministic() -> None:
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def _training(args, settings: dict, device):
    from classification.datasets import open_split
    from classification.learner import Learner
    from classification.training import Training

    where = dict(root=getattr(args, "data", None), image_size=settings["image_size"])
    train = open_split(args.dataset, "train", limit=settings["limit"], **where)
    test = open_split(args.dataset, "test", limit=settings["test_limit"], **where)
    _check_batch(settings)
    learner = Learner(_model(settings, train, device), settings)
    return Training(learner, train, test, settings, _metadata(settings, train), args.output,
                    args.workers, args.save_seconds)  # fmt: skip


def _check_batch(settings: dict) -> None:
    from classification import distributed

    pieces = distributed.world() * settings["accumulate"]
    if settings["batch_size"] % pieces or settings["batch_size"] < 2 * pieces:
        raise UserError(
            f"--batch-size {settings['batch_size']} cannot be cut into {pieces} equal pieces of at "
            f"least 2 images ({distributed.world()} processes, --accumulate "
            f"{settings['accumulate']}); choose a multiple of {pieces}."
        )


def _model(settings: dict, source, device):
    """The classifier with the seed's initial weights."""
    import torch

    from classification import distributed
    from classification.models import Classifier

    with torch.random.fork_rng(devices=[]):  # torch initialises layers from its global generator
        torch.manual_seed(settings["seed"])
        model = Classifier(settings["arch"], source.classes, source.mean, source.std)
    # Suits the convolutions of CPUs and GPUs; benchmarks/adversarial_step.py times it.
    model = model.to(device, memory_format=torch.channels_last)
    return distributed.sync_batchnorm(model, device) if settings["sync_bn"] else model


def _metadata(settings: dict, source) -> dict:
    """What the weights' later users need to know; the format is in docs/formats.md."""
    names = ("arch", "dataset", "method", "constraint", "eps", "steps", "step_size",
             "random_start", "use_best", "epochs", "seed")  # fmt: skip
    return {name: settings[name] for name in names} | {
        "classes": source.classes,
        "image_size": source.image_size,
        "mean": list(source.mean),
        "std": list(source.std),
        "code_version": __version__,
    }


if __name__ == "__main__":
    main()
