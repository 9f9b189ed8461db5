"""What a robustness evaluation found, for reading: rows of numbers, a table, a figure."""

from pathlib import Path

from classification import metrics
from classification.robustness_eval import plan as attack_plan
from classification.robustness_eval.plan import Outcome
from robust_backbones.core.eps import show_eps
from robust_backbones.core.figures import new_figure, save_figure

COLUMNS = ("attack", "accuracy %", "95 % interval", "right", "mean norm", "seconds")


def rows(outcomes: list[Outcome]) -> dict[str, dict]:
    """Numbers of each attack under its name, the clean images first; see docs/formats.md.

    After the attacks come the worst cases, one per radius: an image counts if the model has it
    right clean and under every attack of that radius. What belongs to no radius is left out.

    Args:
        outcomes: of a whole run, the clean one first.
    """
    groups = {}
    for outcome in outcomes:
        groups.setdefault(outcome.attack.group, []).append(outcome)
    found = {group: _row(parts) for group, parts in groups.items()}
    clean, constraint = outcomes[0].right, outcomes[0].attack.constraint
    bounded = [
        parts[-1]
        for parts in groups.values()
        if parts[-1].attack.family in (attack_plan.PGD, attack_plan.AUTOATTACK)
    ]
    for eps in sorted({outcome.attack.eps for outcome in bounded}):
        same = [outcome.right for outcome in bounded if outcome.attack.eps == eps]
        right = [all(flags) for flags in zip(clean, *same, strict=True)]
        name = f"worst case eps {show_eps(constraint, eps)}"
        found[name] = _accuracy(right) | {
            "family": "worst case",
            "constraint": constraint,
            "eps": eps,
            "attacks": len(same),
        }
    return found


def _accuracy(right: list[bool]) -> dict:
    low, high = metrics.wilson(sum(right), len(right))
    return {
        "accuracy": 100 * sum(right) / len(right),
        "right": sum(right),
        "images": len(right),
        "interval": [low, high],
    }


def _row(parts: list[Outcome]) -> dict:
    """Of one attack; of an AutoAttack, whose parts share the work, the last part is the result."""
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


def _norms(parts: list[Outcome]) -> list[float]:
    """Of each image's perturbation: each part moves the images that it breaks, and no others."""
    columns = zip(*(part.norms for part in parts), strict=True)
    finite = ([norm for norm in column if norm is not None] for column in columns)
    return [max(column) for column in finite if column]


def per_image(outcomes: list[Outcome], indices: list[int]) -> list[dict]:
    """One line per image, so that two models can be compared on the same images.

    Args:
        outcomes: of a whole run, the clean one first.
        indices: the images' numbers in the test split.

    Returns:
        `{"index", "label", "right": {attack: 0 or 1}}` each.
    """
    last = {o.attack.group: o for o in outcomes if o.attack.family != attack_plan.UNBOUNDED}
    columns = {group: outcome.right for group, outcome in last.items()}
    return [
        {"index": index, "label": label, "right": {g: int(c[i]) for g, c in columns.items()}}
        for i, (index, label) in enumerate(zip(indices, outcomes[0].labels, strict=True))
    ]


def table(found: dict[str, dict]) -> str:
    """The rows as aligned text."""
    from tabulate import tabulate

    lines = [
        (
            name,
            f"{row['accuracy']:.2f}",
            "{:.2f} .. {:.2f}".format(*row["interval"]),
            f"{row['right']}/{row['images']}",
            _number(row.get("mean_norm")),
            _number(row.get("seconds")),
        )
        for name, row in found.items()
    ]
    align = ("left", *["right"] * (len(COLUMNS) - 1))
    return tabulate(lines, COLUMNS, disable_numparse=True, colalign=align)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def draw(found: dict[str, dict], path: Path) -> None:
    """Accuracy against eps with its intervals, one line per attack, as a PNG.

    Raises:
        UserError: the place cannot be written to.
    """
    figure = new_figure(6, 4)
    axes = figure.add_subplot()
    for title, rows in _curves(found).items():
        eps, accuracy = [row["eps"] for row in rows], [row["accuracy"] for row in rows]
        # Rounding may put an interval's end a hair inside its own figure.
        low = [max(0.0, row["accuracy"] - row["interval"][0]) for row in rows]
        high = [max(0.0, row["interval"][1] - row["accuracy"]) for row in rows]
        worst = title.startswith("worst")
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
    constraint = found["clean"]["constraint"]
    unit = "L2 norm over the image" if constraint == "l2" else "L∞, pixels in [0, 1]"
    axes.set(xlabel=f"eps ({unit})", ylabel="accuracy, % (95 % intervals)", ylim=(-2, 102))
    axes.legend()
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def _curves(found: dict[str, dict]) -> dict[str, list[dict]]:
    """Title -> its rows by eps, each from the clean accuracy at 0 on."""
    curves = {}
    for name, row in found.items():
        if " eps " in name:
            curves.setdefault(name.split(" eps ")[0], [found["clean"]]).append(row)
    return {title: sorted(rows, key=lambda row: row["eps"]) for title, rows in curves.items()}
