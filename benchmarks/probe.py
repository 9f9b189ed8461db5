"""Fit linear probes with 45 L2 penalties: our joint solver against warm-started scikit-learn fits.

python benchmarks/probe.py --images 5000 --features 512 --classes 10 100 --threads 1
python benchmarks/probe.py --images 20000 --features 2048 --classes 100 --device cuda --limit 60

Both use the same float64 features. scikit-learn's L-BFGS fits the penalties from strong to weak,
each from the previous solution. Its tolerance is absolute, so for weak penalties, whose objectives
are small, the default stops too early. It therefore also runs with a tolerance relative to the
previous mean objective. The table has the largest relative excess over the best objective of all
rows, and the number of penalties at which the excess is at most 1e-4.

The features are outputs of a random two-layer ReLU network for Gaussian classes with a decaying
spectrum, or come from `--file`, a torch file with `(features (N, d), labels (N,))`.
"""

import sys
import time
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import timing  # noqa: E402
import torch  # noqa: E402
from sklearn.exceptions import ConvergenceWarning  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from threadpoolctl import threadpool_limits  # noqa: E402

from classification.device_check import synthetic  # noqa: E402
from classification.transfer import probe  # noqa: E402
from classification.transfer.memory import Size, make_plan  # noqa: E402
from robust_backbones.core.cli import Parser  # noqa: E402
from robust_backbones.core.errors import UserError, user_errors  # noqa: E402


def objective(x, y, weights, bias, penalty: float) -> float:
    """The objective of a solution, for both implementations."""
    loss = torch.nn.functional.cross_entropy(x @ weights.T + bias, y, reduction="sum")
    return (loss + penalty / 2 * weights.square().sum()).item()


def ours(x, y, classes: int, tolerance: float, dtype=torch.float64):
    """Fit with our solver. Returns seconds, objectives (strongest penalty first) and iterations."""
    results: list = []
    seconds = timing.seconds(
        lambda: results.append(probe.fit(x, y, classes, tolerance=tolerance, dtype=dtype)), x.device
    )
    (found,) = results
    weights, bias, rows = found.weights.double(), found.bias.double(), range(len(found.bias))
    values = [objective(x, y, weights[i], bias[i], found.penalties[i]) for i in reversed(rows)]
    return seconds, values, int(found.iterations.sum())


def scikit_learn(x, y, tolerance: float, relative: bool, limit: float):
    """Fit with scikit-learn, like `ours`. Stops after the fit that exceeds `limit` seconds."""
    data, labels, last = x.cpu().numpy(), y.cpu().numpy(), None
    seconds, values, iterations = 0.0, [], 0
    # With two classes, its model has half as many weights, and half the penalty.
    halves = 2 if len(y.unique()) == 2 else 1
    for penalty in reversed(probe.PENALTIES):
        tol = tolerance * (values[-1] / len(y) if relative and values else 1)
        model = LogisticRegression(C=halves / penalty, tol=tol, max_iter=20000, warm_start=True)
        if last is not None:
            model.coef_, model.intercept_ = last.coef_, last.intercept_
        start = time.perf_counter()
        last = model.fit(data, labels)
        seconds += time.perf_counter() - start
        weights, bias = (torch.from_numpy(a).to(x) for a in (model.coef_, model.intercept_))
        if halves == 2:
            weights, bias = torch.cat([-weights, weights]) / 2, torch.cat([-bias, bias]) / 2
        values.append(objective(x, y, weights, bias, penalty))
        iterations += int(model.n_iter_.max())
        if seconds > limit:
            break
    return seconds, values, iterations


def compare(x, y, classes: int, args) -> None:
    """Print the memory plan and the rows of one dataset."""
    size = Size(*x.shape, classes, len(probe.PENALTIES))
    print(f"plan for {size}: {make_plan(size, x.device)}", file=sys.stderr)
    rows = {f"ours, {tol:g}": ours(x, y, classes, tol) for tol in args.tolerance}
    for tol in args.float32:
        rows[f"ours in float32, {tol:g}"] = ours(x, y, classes, tol, torch.float32)
    for tol in args.tol:
        rows[f"scikit-learn, {tol:g}"] = scikit_learn(x, y, tol, False, args.limit)
    for tol in args.relative:
        name = f"scikit-learn, {tol:g} of objective"
        rows[name] = scikit_learn(x, y, tol, True, args.limit)
    found = [values for _, values, _ in rows.values()]
    best = [min(v[i] for v in found if i < len(v)) for i in range(len(probe.PENALTIES))]
    base = next(iter(rows.values()))[0]
    for name, (seconds, values, iterations) in rows.items():
        over = [value / b - 1 for value, b in zip(values, best[: len(values)], strict=True)]
        more = "" if len(values) == len(best) else "more than "
        within = sum(o <= 1e-4 for o in over)
        print(
            f"| {x.shape[1]} | {classes} | {name} | {len(values)} | {iterations} | "
            f"{seconds:.1f} | {more}{seconds / base:.1f} | {max(over):.0e} | {within} |",
            flush=True,
        )


def main(argv=None) -> None:
    p = Parser(description=__doc__)
    p.add_argument("--images", type=int, default=5000, help="number of images")
    p.add_argument("--features", type=int, nargs="+", default=[512], help="features per image")
    p.add_argument("--classes", type=int, nargs="+", default=[10], help="number of classes")
    p.add_argument("--file", help="torch file with (features, labels); replaces the synthetic data")
    p.add_argument(
        "--tolerance", type=float, nargs="+", default=[1e-7], help="tolerances of our solver"
    )
    p.add_argument(
        "--float32", type=float, nargs="*", default=[], help="tolerances of our solver in float32"
    )
    p.add_argument(
        "--tol", type=float, nargs="*", default=[1e-4], help="absolute tolerances of scikit-learn"
    )
    p.add_argument(
        "--relative",
        type=float,
        nargs="*",
        default=[3e-5],
        help="tolerances of scikit-learn relative to the previous mean objective",
    )
    p.add_argument(
        "--limit",
        type=float,
        default=600,
        metavar="SECONDS",
        help="time limit of scikit-learn, which stops after the fit that exceeds it",
    )
    p.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    p.add_argument("--device", default="cpu", help="device of our solver, cpu or cuda")
    args = p.parse_args(argv)
    if args.images < 1 or args.threads < 1:
        raise UserError(f"--images {args.images} --threads {args.threads}: must be at least 1.")
    torch.set_num_threads(args.threads)
    device = timing.chosen(args.device)
    warnings.simplefilter("ignore", ConvergenceWarning)
    print(f"{args.images} images, {args.threads} threads, {device}, torch {torch.__version__}")
    print(
        "| features | classes | solver, tolerance | fits | iterations | seconds | time / ours | "
        "largest excess | fits within 1e-4 |"
    )
    print("|---|---|---|---|---|---|---|---|---|", flush=True)
    with threadpool_limits(args.threads):
        if args.file:
            x, y = (a[: args.images] for a in torch.load(args.file, weights_only=True))
            compare(x.double().to(device), y.to(device), int(y.max()) + 1, args)
            return
        for d in args.features:
            for classes in args.classes:
                x, y = (a.to(device) for a in synthetic(args.images, d, classes))
                compare(x, y, classes, args)


if __name__ == "__main__":
    with user_errors():
        main()
