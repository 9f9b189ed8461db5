import re
import runpy
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
PACKAGE = (ROOT / "robust_backbones/__init__.py").read_text(encoding="utf-8")
VERSION = PACKAGE.partition('__version__ = "')[2].partition('"')[0]
TABLE = runpy.run_path(str(ROOT / "robust_backbones/core/extras.py"))["EXTRAS"]
EXTRAS = {extra: list(requirements) for extra, requirements in TABLE.items()}
# CITATION.cff names the authors and, if it is set, the address of the repository.
REPOSITORY = re.findall(
    r"^repository-code: (\S+)", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M
)

setup(
    name="robust-backbones",
    version=VERSION,
    description="Adversarially robust ImageNet backbones for Detectron2, and their transfer",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    license_files=["LICENSE"],
    project_urls={"Source": REPOSITORY[0]} if REPOSITORY else {},
    keywords="adversarial robustness, transfer learning, object detection, Detectron2, PyTorch",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["robust_backbones*", "classification*"]),
        "robust_backbones.configs",
    ],
    package_dir={"robust_backbones.configs": "configs"},
    entry_points={"console_scripts": ["robust-backbones = robust_backbones.__main__:main"]},
    package_data={
        "robust_backbones": ["zoo.csv", "zoo_sources.csv", "py.typed", "__init__.pyi"],
        "robust_backbones.commands": ["demo.html.jinja"],
        "robust_backbones.configs": ["*.yaml", "base/*.yaml", "studies/*.yaml"],
        "robust_backbones.detection": ["__init__.pyi"],
        "robust_backbones.detection.inspect": ["gallery.html.jinja"],
        "classification": ["py.typed", "__init__.pyi"],
        "classification.report": ["published.yaml", "report.html.jinja", "report.css", "report.js"],
    },
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy",
        "pillow",
        "opencv-python-headless",  # decodes and resizes images
        "huggingface_hub>=0.26",  # published weights
        "filelock>=3.12",
        "lazy_loader>=0.4",  # imports public names at their first use
        "fsspec",  # studies and shards on object storage
        "safetensors>=0.4",
        "matplotlib",
        "tabulate",
        "tensorboard",
        "tqdm",
        "pyyaml",
        "scipy",  # index files of Stanford Cars and Oxford Flowers, statistics of reports
        "scikit-learn",  # embedded digits
        "scikit-image",  # embedded textures
        "jinja2",
    ],
    extras_require={
        **EXTRAS,
        "docs": [
            "zensical>=0.0.73; python_version >= '3.11'",
            "mkdocstrings-python>=2",
            "nbconvert",
        ],  # make docs
        "dev": [
            *sum(EXTRAS.values(), []),
            "pytest",
            "pytest-xdist",  # tests on several cores
            "mypy",
            "types-pyyaml",
            "types-tabulate",
            "types-tqdm",
            "ruff",
            "robustness",  # our attacks and files are tested against the paper's library
            "open_clip_torch",  # image towers of CLIP are tested against it
            "selenium",  # tests of the report in a browser
            "nbclient",  # tests of docs/tutorials
            "ipykernel",
        ],
    },
)
