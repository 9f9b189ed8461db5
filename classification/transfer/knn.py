"""k-nearest-neighbor classification of features by cosine similarity, without training."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from classification.transfer.memory import free_bytes
from classification.transfer.rows import Rows
from robust_backbones.core.errors import UserError

NEIGHBORS = (1, 2, 5, 10, 20, 50, 100, 200)
SIMILARITIES = 2**24  # number of similarities in memory at once
# Share of the free memory for the training features on the device, which exist twice while they are
# normalized. Features that need more are compared block by block.
SHARE = 0.25


def classify(
    x_train: Tensor | Rows,
    y_train: Tensor,
    x_test: Tensor | Rows,
    k: int,
    classes: int,
    *,
    temperature: float | None = 0.07,
    device: torch.device | None = None,
) -> Tensor:
    """Predict classes `(N,)` int64 by a vote of the k most similar training images.

    Args:
        x_train: training features `(M, d)`. Their scale has no effect.
        y_train: training labels `(M,)`, int64 in [0, classes).
        x_test: test features `(N, d)`.
        k: number of neighbors, in [1, M].
        classes: number of classes.
        temperature: temperature of the votes, > 0. A vote has the weight exp(cosine / temperature),
            as in Wu et al. (2018, "Unsupervised feature learning via non-parametric instance
            discrimination"). None: equal weights, as in scikit-learn's KNeighborsClassifier. Then
            the first class with the most votes is predicted.
        device: device of the computation; None: the device of x_train.

    Raises:
        UserError: k is not in [1, M], the temperature is not positive, or a feature is not finite.
    """
    return _votes(x_train, y_train, x_test, [k], classes, temperature, device)[0]


def choose_neighbors(
    x_train: Tensor | Rows,
    y_train: Tensor,
    x_val: Tensor | Rows,
    y_val: Tensor,
    classes: int,
    metric: Callable[[Tensor, Tensor, int], float],
    *,
    ks: Sequence[int] = NEIGHBORS,
    temperature: float | None = 0.07,
    device: torch.device | None = None,
) -> tuple[int, list[tuple[int, float]]]:
    """Choose the k with the best validation accuracy. If several k are best, choose the largest.

    Args:
        x_train, y_train, classes, temperature, device: same as for `classify`.
        x_val, y_val: validation features `(N, d)` and labels `(N,)`.
        metric: function `(predictions, labels, classes) -> accuracy in percent`.
        ks: values of k to choose from. Values above the number of training images are excluded.

    Returns:
        The best k, and a list of `(k, accuracy in percent)` for all evaluated values.

    Raises:
        UserError: `classify` rejects the arguments, or all values are excluded.
    """
    possible = sorted({k for k in ks if k <= len(x_train)})
    if not possible:
        raise UserError(
            f"neighbors {list(ks)}: there are {len(x_train)} training images. Give smaller numbers."
        )
    predictions = _votes(x_train, y_train, x_val, possible, classes, temperature, device)
    values = [metric(row.cpu(), y_val.cpu(), classes) for row in predictions]
    curve = list(zip(possible, values, strict=True))
    return max(curve, key=lambda row: (row[1], row[0]))[0], curve


def _votes(
    x_train: Tensor | Rows,
    y_train: Tensor,
    x: Tensor | Rows,
    ks: Sequence[int],
    classes: int,
    temperature: float | None,
    device: torch.device | None,
) -> Tensor:
    """Predict classes `(len(ks), N)` for each of the ascending `ks`."""
    if not 1 <= ks[0] <= ks[-1] <= len(x_train):
        raise UserError(
            f"{ks[0]} neighbors: there are {len(x_train)} images. Give 1 to {len(x_train)}."
        )
    if temperature is not None and not temperature > 0:
        raise UserError(f"temperature {temperature}: give a positive number or None.")
    train, x = Rows.of(x_train), Rows.of(x)
    device = device or train.pieces[0].device
    y_train, found = y_train.to(device), []
    for cosines, index in _nearest(train, x, ks[-1], classes, device):
        # Subtract the highest similarity, to avoid an overflow.
        weights = (
            torch.ones_like(cosines)
            if temperature is None
            else ((cosines - cosines[:, :1]) / temperature).exp()
        )
        votes, voters, rows = cosines.new_zeros(len(cosines), classes), y_train[index], []
        for low, high in zip([0, *ks[:-1]], ks, strict=True):
            votes.scatter_add_(1, voters[:, low:high], weights[:, low:high])
            rows.append(votes.argmax(1))
        found.append(torch.stack(rows))
    return torch.cat(found, 1)


def _nearest(
    train: Rows, x: Rows, k: int, classes: int, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Find the k most similar training images of each image.

    Returns:
        Cosine similarities, descending, and indices of the training images, `(n, k)` each, for
        parts of x.
    """
    size = train.pieces[0].element_size() * train.width
    block = max(k, int(SHARE * free_bytes(device)) // size)
    rows = max(1, SIMILARITIES // max(min(block, len(train)), classes))
    found: list[tuple[Tensor, Tensor]] = []
    for first in range(0, len(train), block):
        base = F.normalize(_finite(train.part(first, first + block)).to(device), dim=1)
        for number, part in enumerate(x.parts(rows)):
            cosines = F.normalize(_finite(part).to(base), dim=1) @ base.T
            best, index = cosines.topk(min(k, len(base)))
            index += first
            if not first:
                found.append((best, index))
                continue
            best, index = (
                torch.cat([found[number][0], best], 1),
                torch.cat([found[number][1], index], 1),
            )
            best, order = best.topk(k)
            found[number] = best, index.gather(1, order)
    return found


def _finite(x: Tensor) -> Tensor:
    if not x.isfinite().all():
        raise UserError("some features are NaN or infinite. Check the network that computed them.")
    return x
