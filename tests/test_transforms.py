"""Augmentations against a slow, obvious version."""

import torch

from classification.transforms import random_shift


def images(n=64):
    return torch.rand(n, 2, 5, 7, generator=torch.Generator().manual_seed(0)) + 0.1  # no zeros


def shifted(image, down, right):
    """`image` moved by whole pixels, pixel by pixel; zeros come in."""
    _, height, width = image.shape
    out = torch.zeros_like(image)
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                out[:, row, column] = image[:, row - down, column - right]
    return out


def test_each_image_is_moved_by_its_own_whole_shift():
    x = images()
    y = random_shift(x, 2, torch.Generator().manual_seed(1))
    assert y.shape == x.shape
    span, seen = range(-2, 3), set()
    for before, after in zip(x, y, strict=True):
        matches = [(d, r) for d in span for r in span if torch.equal(shifted(before, d, r), after)]
        assert len(matches) == 1
        seen.add(matches[0])
    assert {d for d, _ in seen} == {r for _, r in seen} == set(span)


def test_no_shift_is_the_identity():
    assert torch.equal(random_shift(images(), 0, torch.Generator()), images())


def test_the_generator_alone_decides():
    x, before = images(), torch.get_rng_state()
    draws = [random_shift(x, 3, torch.Generator().manual_seed(seed)) for seed in (4, 4, 5)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), before)
