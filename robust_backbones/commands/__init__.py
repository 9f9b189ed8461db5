"""Command lines of the package: light parsers, each with a `main` that starts the work.

They are not part of `robust_backbones.detection`, whose import takes seconds: it loads Detectron2.
"""
