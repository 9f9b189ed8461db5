"""Command-line interfaces of the package: light parsers, each with a `main` that runs the command.

They are not part of `robust_backbones.detection`, whose import takes seconds: it loads Detectron2.
"""
