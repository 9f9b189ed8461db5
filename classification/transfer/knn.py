"""k nearest neighbors on features, by cosine: a probe without training."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from robust_backbones.core.errors import UserError

NEIGHBORS = (1, 2, 5, 10, 20, 50, 100, 200)
SIMILARITIES = 2**24  # in memory at once


def classify(
    x_train: Tensor,
    y_train: Tensor,
    x_test: Tensor,
    k: int,
    classes: int,
    *,
    temperature: float | None = 0.07,
) -> Tensor:
    """Classes `(N,)` int64, voted for by the k training images of the largest cosine.

    Args:
        x_train: `(M, d)`; x_test: `(N, d)`; features, of any scale.
        y_train: `(M,)` int64 in [0, classes).
        k: in [1, M].
        temperature: a vote weighs exp(cosine / temperature), with the temperature of Wu et al.
            (2018, "Unsupervised feature learning via non-parametric instance discrimination").
            None: votes are equal, and of classes with equally many the first one wins, as in
            scikit-learn's KNeighborsClassifier.

    Raises:
        UserError: k is not in [1, M], the temperature not positive, or features not finite.
    """
    return _votes(x_train, y_train, x_test, [k], classes, temperature)[0]


def choose_neighbors(
    x_train: Tensor,
    y_train: Tensor,
    x_val: Tensor,
    y_val: Tensor,
    classes: int,
    metric: Callable[[Tensor, Tensor, int], float],
    *,
    ks: Sequence[int] = NEIGHBORS,
    temperature: float | None = 0.07,
) -> tuple[int, list[tuple[int, float]]]:
    """The k with the best validation value (of several, the largest), and `(k, value)` of each.

    Args:
        metric: (predictions, labels, classes) -> percent.
        ks: to choose from; those above the number of training images are left out.
        Others as for `classify`.

    Raises:
        UserError: as `classify`; no k is left.
    """
    possible = sorted({k for k in ks if k <= len(x_train)})
    if not possible:
        raise UserError(f"neighbors {list(ks)} of {len(x_train)} images; give numbers up to that.")
    predictions = _votes(x_train, y_train, x_val, possible, classes, temperature)
    values = [metric(row.cpu(), y_val.cpu(), classes) for row in predictions]
    curve = list(zip(possible, values, strict=True))
    return max(curve, key=lambda row: (row[1], row[0]))[0], curve


def _votes(
    x_train: Tensor,
    y_train: Tensor,
    x: Tensor,
    ks: Sequence[int],
    classes: int,
    temperature: float | None,
) -> Tensor:
    """`(len(ks), N)`; ks ascending."""
    if not 1 <= ks[0] <= ks[-1] <= len(x_train):
        raise UserError(f"{ks[0]} neighbors of {len(x_train)} images; give 1 to {len(x_train)}.")
    if temperature is not None and not temperature > 0:
        raise UserError(f"temperature {temperature}; give a positive number, or None.")
    if not (x_train.isfinite().all() and x.isfinite().all()):
        raise UserError("features are not all finite; look at the network that made them.")
    base, y_train = F.normalize(x_train, dim=1), y_train.to(x_train.device)
    found = []
    for part in x.to(base).split(max(1, SIMILARITIES // max(len(base), classes))):
        cosines, index = (F.normalize(part, dim=1) @ base.T).topk(ks[-1])
        # Relative to the nearest one, so that nothing overflows.
        weights = (
            torch.ones_like(cosines)
            if temperature is None
            else ((cosines - cosines[:, :1]) / temperature).exp()
        )
        votes, voters, rows = part.new_zeros(len(part), classes), y_train[index], []
        for low, high in zip([0, *ks[:-1]], ks, strict=True):
            votes.scatter_add_(1, voters[:, low:high], weights[:, low:high])
            rows.append(votes.argmax(1))
        found.append(torch.stack(rows))
    return torch.cat(found, 1)
