"""File extensions of images, and the decoders of this installation."""

from PIL import Image

from robust_backbones.core import image_formats


def test_an_optional_plugin_adds_its_formats(monkeypatch):
    """A decoder that is registered with Pillow is used, and its file extensions are readable."""
    assert not image_formats.has_image_suffix("a.heic")
    monkeypatch.setitem(Image.OPEN, "HEIF", (None, None))
    image_formats.decoders.cache_clear()
    image_formats._suffixes.cache_clear()
    try:
        assert image_formats.has_image_suffix("a.HEIC") and "HEIF" in image_formats.decoders()
    finally:
        monkeypatch.undo()
        image_formats.decoders.cache_clear()
        image_formats._suffixes.cache_clear()


def test_only_image_suffixes_count():
    names = ("a.jpg", "a.JPEG", "a.gif", "a.avif", "a.tiff", "a.txt", "a", "jpg", "a.eps", "a.svg")
    assert [name for name in names if image_formats.has_image_suffix(name)] == list(names[:5])
    skipped = image_formats.describe_skipped(["x/a.heic", "b.HEIC", "c.txt", "README"])
    assert skipped == "2 .heic (pip install pillow-heif), 1 .txt, 1 without extension"
