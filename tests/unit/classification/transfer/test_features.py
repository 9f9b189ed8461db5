"""Features are the network's, computed once, never outdated, and complete after interruptions."""

import dataclasses

import numpy as np
import pytest
import torch

from classification.datasets import loader
from classification.datasets.open import open_split
from classification.datasets.split import ImageSplit
from classification.models import Classifier
from classification.transfer import features
from robust_backbones.core.images import Decoding
from robust_backbones.core.precision import PRECISIONS
from robust_backbones.core.signals import Stopped, StopSignals
from tests.support.networks import random_network
from tests.support.processes import watch_starts


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(features, "ROWS", 16)
    monkeypatch.setattr(features, "BATCH", 8)


@pytest.fixture
def source():
    return open_split("digits", "test", limit=40)


def network() -> Classifier:
    model = Classifier.build("shufflenet_v2_x1_0", 10)
    model.net.load_state_dict(random_network("shufflenet_v2_x1_0").state_dict())
    return model


@pytest.fixture
def counted(monkeypatch):
    """Indices of the images whose features were computed, in order."""
    read, parts = [], []
    subset, load_batches = ImageSplit.subset, loader.load_batches

    def watched_subset(self, indices):
        found = subset(self, indices)
        if isinstance(indices, list):  # `extract` asks for the missing images
            parts.append((found, indices))
        return found

    def watched_batches(source, *args, **options):
        read.extend(next((each for part, each in parts if part is source), range(len(source))))
        return load_batches(source, *args, **options)

    monkeypatch.setattr(ImageSplit, "subset", watched_subset)
    monkeypatch.setattr(loader, "load_batches", watched_batches)
    return read


def extract(*args, **options) -> np.ndarray:
    found = features.extract(*args, **options)
    return found.part(0, len(found)).numpy()


def test_features_are_the_input_of_the_last_layer(source):
    model = network().train()
    found = extract(model, source)
    assert not model.training and found.shape == (40, 1024) and found.dtype == np.float32
    x = torch.cat([x for x, _ in loader.load_batches(source, 40)])
    model.net.fc = torch.nn.Identity()
    with torch.no_grad():
        expected = model(x).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_features_are_computed_once(source, counted):
    first = extract(network(), source)
    assert counted == list(range(40))
    again = extract(network(), source)
    assert counted == list(range(40)) and np.array_equal(first, again)


def pixel(source):
    images = source.images.clone()
    images[3, 0, 5, 5] += 0.01
    return dataclasses.replace(source, images=images)


CHANGES = {
    "a weight": lambda model, source: model.net.conv1[0].weight.data[0, 0, 0, 0].add_(1e-3),
    "a statistic": lambda model, source: model.net.conv1[1].running_var[0].mul_(1.01),
    "the normalization": lambda model, source: model.normalize.mean.add_(1e-3),
    "a pixel": lambda model, source: pixel(source),
    "the order": lambda model, source: source.subset(torch.arange(39, -1, -1)),
    "the size": lambda model, source: dataclasses.replace(source, image_size=48),
    "the detail": lambda model, source: dataclasses.replace(source, downscale=8),
}


@pytest.mark.parametrize("change", CHANGES)
def test_no_change_leads_to_outdated_features(source, counted, change):
    before = extract(network(), source)
    counted.clear()
    model = network()
    changed = CHANGES[change](model, source)
    changed = changed if isinstance(changed, type(source)) else source
    after = extract(model, changed)
    assert counted == list(range(40)) and not np.array_equal(before, after)


def test_each_setting_of_the_decoder_has_its_own_features(source):
    decoders = (Decoding(), Decoding(upright=False), Decoding((0, 4095)), Decoding((0, 65535)))
    sources = (dataclasses.replace(source, decoding=decoding) for decoding in decoders)
    keys = (features.identity(network(), each, "float32") for each in sources)
    assert len(set(map(features.folder_of, keys))) == 4


def test_each_precision_and_type_of_device_has_its_own_features(source):
    keys = [features.identity(network(), source, name) for name in PRECISIONS]
    keys.append(keys[0] | {"device": "cuda"})
    assert keys[0]["device"] == "cpu"
    assert len({features.folder_of(key) for key in keys}) == len(PRECISIONS) + 1


@pytest.mark.parametrize("name, value", [("torch", "9.9"), ("torchvision", "9.9")])
def test_other_library_versions_recompute(source, counted, monkeypatch, name, value):
    extract(network(), source)
    monkeypatch.setattr(getattr(features, name), "__version__", value)
    extract(network(), source)
    assert len(counted) == 80


def test_another_head_uses_the_same_cache(source, counted):
    extract(network(), source)
    model = network()
    model.head.reset_parameters()
    extract(model, source)
    assert len(counted) == 40


def test_an_interrupted_extraction_resumes(source, counted):
    expected = extract(network(), source)
    folder = features.folder_of(features.identity(network().eval(), source, "float32"))
    for file in sorted(folder.glob("*.npy"))[1:]:
        file.unlink()
    counted.clear()
    signals = StopSignals()

    def stop_in_the_second_piece(images, doing):
        signals.requested = len(counted) > 0

    with pytest.raises(Stopped):
        extract(network(), source, signals=signals, progress=stop_in_the_second_piece)
    assert len(list(folder.glob("*.npy"))) == 1
    counted.clear()
    found = extract(network(), source)
    assert counted == list(range(16, 40)) and np.array_equal(found, expected)


@pytest.mark.parametrize("damage", [b"", b"no array", "half"])
def test_a_damaged_file_is_recomputed(source, counted, damage):
    expected = extract(network(), source)
    folder = features.folder_of(features.identity(network().eval(), source, "float32"))
    file = sorted(folder.glob("*.npy"))[1]
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage == "half" else damage)
    counted.clear()
    found = extract(network(), source)
    assert counted == list(range(16, 32)) and np.array_equal(found, expected)


def test_workers_start_once_and_change_nothing(source, monkeypatch, tmp_path):
    expected = extract(network(), source)
    monkeypatch.setenv("ROBUST_BACKBONES_CACHE", str(tmp_path / "other"))
    started = watch_starts(monkeypatch)
    assert np.array_equal(extract(network(), source, workers=2), expected)
    assert len(started) == 2 and not any(each.is_alive() for each in started)


def test_progress_counts_every_image_whether_computed_or_read(source):
    seen = []
    for total in (40, 80):
        extract(network(), source, progress=lambda images, doing: seen.append(images))
        assert sum(seen) == total


def test_half_precision_of_the_network_gives_float32_features(source):
    whole = extract(network(), source)
    half = extract(network(), source, precision="bfloat16")
    assert half.dtype == np.float32 and not np.array_equal(whole, half)
    assert np.corrcoef(whole.ravel(), half.ravel())[0, 1] > 0.99
