"""Results of a grid of runs, and the report's sections built from them."""

import itertools
from collections import Counter

import numpy as np

from classification.report.contents.build import build_sections, collect
from classification.report.sections import Value
from tests.support.result_records import transfer

MODES = ("fixed-feature", "full-network")


def named(found):
    """Map names to sections, after checks that hold for every section."""
    sections = build_sections(collect(found))
    names = [section.name for section in sections]
    drawn = [figure.name for section in sections for figure in section.figures]
    assert not [name for name, times in Counter(names + drawn).items() if times > 2]
    assert len(set(names)) == len(names) and len(set(drawn)) == len(drawn)
    for section in sections:
        assert section.found <= section.wanted or not section.wanted, section.name
        for cell in itertools.chain(*(row.values() for row in section.rows)):
            if isinstance(cell, Value):
                assert all(0 <= place < len(found) for place in cell.records)
        for figure in section.figures:
            assert figure.panels
            for one in itertools.chain(*figure.panels.values()):
                assert len(one.x) == len(one.y)
                assert {len(one.low), len(one.high), len(one.labels)} <= {0, len(one.y)}
    return dict(zip(names, sections, strict=True))


def row(section, /, **wanted):
    """The only row with these cells."""
    (found,) = [r for r in section.rows if wanted.items() <= r.items()]
    return found


def grid(
    tasks=("cifar10", "pets"),
    archs=("resnet18", "resnet50"),
    levels=(0.0, 1.0, 3.0),
    modes=MODES,
    trials=3,
    gain=2.0,
    **more,
):
    """Results of transfer in which robust networks are better by `gain` points, a little more at
    larger eps, and each next architecture by one point."""
    rng, found = np.random.default_rng(0), []
    for mode, task, (a, arch), eps in itertools.product(modes, tasks, enumerate(archs), levels):
        for seed in range(trials):
            accuracy = 70 + a + (gain + 0.1 * eps if eps else 0) + rng.normal(0, 0.05)
            found.append(transfer(task, arch, eps, accuracy, mode=mode, seed=seed, **more))
    return found
