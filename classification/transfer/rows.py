"""Matrix of features, whose rows may be in several memory-mapped files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """Features `(N, d)` of N images.

    A subset refers to the rows of its matrix and copies nothing. The operating system keeps
    memory-mapped files in memory while memory is free, and reads them again otherwise.

    Attributes:
        pieces: parts of a matrix, `(height, d)` each; the last part may have fewer rows.
        indices: ascending indices of the N rows in the matrix, int64; None: all rows.
    """

    pieces: Sequence[Tensor]
    indices: Tensor | None = None

    @classmethod
    def of(cls, x: "Tensor | Rows") -> "Rows":
        """Return x as `Rows`. Tensors `(N, d)` are not copied."""
        return x if isinstance(x, Rows) else cls([x])

    def __len__(self) -> int:
        """Return the number of images."""
        return sum(map(len, self.pieces)) if self.indices is None else len(self.indices)

    @property
    def width(self) -> int:
        """Number of features per image."""
        return self.pieces[0].shape[1]

    def subset(self, indices: Tensor) -> "Rows":
        """Return the rows at these ascending indices `(M,)`, int64."""
        return Rows(self.pieces, indices if self.indices is None else self.indices[indices])

    def parts(self, rows: int) -> Iterator[Tensor]:
        """Iterate over the features, with at most `rows` images at a time."""
        for first in range(0, len(self), rows):
            yield self.part(first, first + rows)

    def part(self, first: int, last: int) -> Tensor:
        """Return the features of the images in [first, last)."""
        last, height = min(last, len(self)), len(self.pieces[0])
        if self.indices is not None:
            index = self.indices[first:last]
        elif first // height == (last - 1) // height:  # in one piece: no copy
            return self.pieces[first // height][first % height : (last - 1) % height + 1]
        else:
            index = torch.arange(first, last)
        numbers = index // height
        chosen = [
            self.pieces[number][(index[numbers == number] % height).to(self.pieces[0].device)]
            for number in numbers.unique().tolist()
        ]
        return chosen[0] if len(chosen) == 1 else torch.cat(chosen)
