from pathlib import Path

from setuptools import find_packages, setup

VERSION = {}
exec(Path(__file__).with_name("robust_backbones").joinpath("__init__.py").read_text(), VERSION)

# Detectron2 itself is not listed, because PyPI has no wheel of it. `robust-backbones
# install-detectron2` installs it. These are its requirements and ours for detection.
DETECTION = [
    "pycocotools",
    "hotcoco>=1.3,<2",  # fast COCO metrics with the numbers of pycocotools
    "fvcore",
    "iopath",
    "yacs",
    "omegaconf>=2.1",
    "hydra-core>=1.1",
    "cloudpickle",
    "packaging",
    "termcolor",
    "setuptools<81",  # Detectron2 0.6 imports pkg_resources
]

setup(
    name="robust-backbones",
    version=VERSION["__version__"],
    description="Adversarially robust ImageNet backbones for Detectron2, and their transfer",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=[
        *find_packages(include=["robust_backbones*", "classification*"]),
        "robust_backbones.configs",
    ],
    package_dir={"robust_backbones.configs": "configs"},
    entry_points={"console_scripts": ["robust-backbones = robust_backbones.__main__:main"]},
    package_data={
        "robust_backbones": ["zoo.csv", "zoo_sources.csv", "py.typed"],
        "robust_backbones.commands": ["demo.html.jinja"],
        "robust_backbones.configs": ["*.yaml", "base/*.yaml", "studies/*.yaml"],
        "robust_backbones.detection.inspect": ["gallery.html.jinja"],
        "classification": ["py.typed"],
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
        "detection": DETECTION,
        # Also needed: pip install --no-deps imagecorruptions-imaug. It is not listed because it
        # requires opencv-python, which overwrites files of opencv-python-headless.
        "corruptions": ["numba"],
        "attacks": ["pyautoattack"],  # robustness-eval --autoattack
        "timm": ["timm>=1.0"],  # networks of timm: ConvNeXt, Swin, ViT and others
        "drive": ["gdown>=6.5"],  # published weights on Google Drive
        "dill": ["dill"],  # convert --allow-pickle for files of the robustness library
        "ray": ["ray>=2.40"],  # study --executor ray
        "shards": ["webdataset>=1.0"],  # training data as tar files
        "docs": [
            "zensical>=0.0.73; python_version >= '3.11'",
            "mkdocstrings-python>=2",
            "nbconvert",
        ],  # make docs
        "dev": [
            *DETECTION,
            "pytest",
            "pytest-xdist",  # tests on several cores
            "mypy",
            "types-pyyaml",
            "types-tabulate",
            "types-tqdm",
            "ruff",
            "dill",
            "gdown",
            "robustness",  # our attacks and files are tested against the paper's library
            "timm",  # our networks and files are tested against it
            "open_clip_torch",  # likewise, for image towers of CLIP
            "webdataset",
            "pyautoattack",
            "numba",
            "ray",
            "selenium",  # tests of the report in a browser
            "nbclient",  # tests of docs/notebooks
            "ipykernel",
        ],
    },
)
