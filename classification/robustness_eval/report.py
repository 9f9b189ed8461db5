"""Report a robustness evaluation: results per attack, a table, a figure, and a row per image."""

from pathlib import Path

from tabulate import tabulate

from classification import metrics
from classification.robustness_eval.plan import AUTOATTACK, PGD, UNBOUNDED, AttackResult
from robust_backbones.core.eps import show_eps
from robust_backbones.core.figures import new_figure, save_figure

COLUMNS = ("attack", "accuracy %", "95 % interval", "right", "mean norm", "seconds")
WORST_CASE = "worst case"


def summarize(found: list[AttackResult]) -> dict[str, dict]:
    """Return the results of each attack by its name. docs/reference/formats.md lists the keys.

    The worst case at each radius follows the attacks. In the worst case, an image is right if the
    model classifies it correctly without an attack and under every attack with this radius.

    Args:
        found: results of a complete run, the clean images first.
    """
    groups: dict[str, list[AttackResult]] = {}
    for result in found:
        groups.setdefault(result.attack.group, []).append(result)
    rows = {group: _row(parts) for group, parts in groups.items()}
    clean, constraint = found[0].right, found[0].attack.constraint
    last = [parts[-1] for parts in groups.values()]
    bounded = [result for result in last if result.attack.family in (PGD, AUTOATTACK)]
    for eps in sorted({result.attack.eps for result in bounded}):
        same = [result.right for result in bounded if result.attack.eps == eps]
        right = [all(flags) for flags in zip(clean, *same, strict=True)]
        rows[f"{WORST_CASE} eps {show_eps(constraint, eps)}"] = _accuracy(right) | {
            "family": WORST_CASE,
            "constraint": constraint,
            "eps": eps,
            "attacks": len(same),
        }
    return rows


def _accuracy(right: list[bool]) -> dict:
    low, high = metrics.wilson(sum(right), len(right))
    return {
        "accuracy": 100 * sum(right) / len(right),
        "right": sum(right),
        "images": len(right),
        "interval": [low, high],
    }


def _row(parts: list[AttackResult]) -> dict:
    """Return the result row of one attack.

    Args:
        parts: results of the parts of the attack. Only AutoAttack has several parts. Its last part
            has the final accuracy.
    """
    attack = parts[-1].attack
    norms = _norms(parts)
    row = _accuracy(parts[-1].right) | {
        "family": attack.family,
        "constraint": attack.constraint,
        "eps": attack.eps,
        "steps": attack.steps,
        "restarts": attack.restarts,
        "mean_norm": sum(norms) / len(norms) if norms else None,
        "max_norm": max(norms, default=None),
        "seconds": round(sum(part.seconds for part in parts), 2),
    }
    if attack.part:
        row["parts"] = {part.attack.part: _accuracy(part.right)["accuracy"] for part in parts}
    return row


def _norms(parts: list[AttackResult]) -> list[float]:
    """Return the norm of each image's perturbation. At most one part perturbs an image."""
    columns = zip(*(part.norms for part in parts), strict=True)
    finite = ([norm for norm in column if norm is not None] for column in columns)
    return [max(column) for column in finite if column]


def per_image(found: list[AttackResult], indices: list[int]) -> list[dict]:
    """Return one row per image, so that models can be compared on the same images.

    Args:
        found: results of a complete run, the clean images first.
        indices: index of each image in the test split.

    Returns:
        Rows `{"index", "label", "right": {attack: 0 or 1}}`.
    """
    last = {r.attack.group: r.right for r in found if r.attack.family != UNBOUNDED}
    return [
        {"index": index, "label": label, "right": {g: int(right[i]) for g, right in last.items()}}
        for i, (index, label) in enumerate(zip(indices, found[0].labels, strict=True))
    ]


def format_table(rows: dict[str, dict]) -> str:
    """Return the rows of `summarize` as aligned text."""
    lines = [
        (
            name,
            f"{row['accuracy']:.2f}",
            "{:.2f} .. {:.2f}".format(*row["interval"]),
            f"{row['right']}/{row['images']}",
            _number(row.get("mean_norm")),
            _number(row.get("seconds")),
        )
        for name, row in rows.items()
    ]
    align = ("left", *["right"] * (len(COLUMNS) - 1))
    return tabulate(lines, COLUMNS, disable_numparse=True, colalign=align)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def draw_curve(rows: dict[str, dict], path: Path) -> None:
    """Save a figure of accuracy against eps, with confidence intervals and one line per attack.

    Args:
        rows: results of each attack, as `summarize` returns them.
        path: PNG file to write.

    Raises:
        UserError: the file cannot be written.
    """
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    for title, points in _curves(rows).items():
        eps, accuracy = [row["eps"] for row in points], [row["accuracy"] for row in points]
        # Clamp at 0, because rounding can make a length slightly negative.
        low = [max(0.0, row["accuracy"] - row["interval"][0]) for row in points]
        high = [max(0.0, row["interval"][1] - row["accuracy"]) for row in points]
        worst = title == WORST_CASE
        axes.errorbar(
            eps,
            accuracy,
            yerr=(low, high),
            marker="o",
            capsize=3,
            label=title,
            color="black" if worst else None,
            ls=":" if worst else "-",
        )
    l2 = rows["clean"]["constraint"] == "l2"
    unit = "L2 norm over the image" if l2 else "L∞, pixels in [0, 1]"
    axes.set(xlabel=f"eps ({unit})", ylabel="accuracy, % (95 % intervals)", ylim=(-2, 102))
    axes.legend()
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def _curves(rows: dict[str, dict]) -> dict[str, list[dict]]:
    """Return the rows of each attack by its title, sorted by eps and starting at clean accuracy."""
    curves: dict[str, list[dict]] = {}
    for name, row in rows.items():
        if row["family"] in (PGD, AUTOATTACK, WORST_CASE):
            curves.setdefault(name.partition(" eps ")[0], [rows["clean"]]).append(row)
    return {title: sorted(points, key=lambda row: row["eps"]) for title, points in curves.items()}
