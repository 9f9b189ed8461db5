from pathlib import Path

from setuptools import find_packages, setup

VERSION = {}
exec(Path(__file__).with_name("robust_backbones").joinpath("__init__.py").read_text(), VERSION)


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
        "robust_backbones": ["zoo.sha256", "py.typed"],
        "robust_backbones.commands": ["demo.html.jinja"],
        "robust_backbones.configs": ["*.yaml", "base/*.yaml", "studies/*.yaml"],
        "robust_backbones.detection.inspect": ["gallery.html.jinja"],
        "classification": ["py.typed"],
        "classification.report": ["published.yaml", "report.html.jinja", "report.css", "report.js"],
    },
    # Detectron2 itself is not on this list: PyPI has no wheel of it. tools/install_detectron2.py
    # installs it; its needs stand here, in current versions.
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "numpy",
        "pillow",
        "opencv-python-headless",
        "pycocotools",
        "hotcoco>=1.3,<2",  # COCO's metrics, pycocotools' numbers
        "fvcore",
        "iopath",
        "huggingface_hub>=0.26",  # the published weights
        "filelock>=3.12",
        "safetensors>=0.4",
        "yacs",
        "omegaconf>=2.1",
        "hydra-core>=1.1",
        "cloudpickle",
        "matplotlib",
        "packaging",
        "tabulate",
        "tensorboard",
        "termcolor",
        "tqdm",
        "pyyaml",
        "setuptools<81",  # Detectron2 0.6 imports pkg_resources
        "scipy",  # the index files of Stanford Cars and Oxford Flowers, the statistics of reports
        "scikit-learn",  # the digits of the embedded data
        "scikit-image",  # the textures of the embedded data
        "jinja2",
    ],
    extras_require={
        # tools/corrupt_net.py, which also needs: pip install --no-deps imagecorruptions-imaug. That
        # package cannot stand here: it asks for opencv-python, whose files and those of
        # opencv-python-headless overwrite each other.
        "corruptions": ["numba"],
        "attacks": ["pyautoattack"],  # classification.robustness_eval --autoattack
        "dill": ["dill"],  # --allow-pickle for files written by the robustness library
        "ray": ["ray>=2.40"],  # classification.study --executor ray
        "shards": ["webdataset>=1.0"],  # training data as tar files, local or remote
        "docs": ["mkdocs", "mkdocs-material>=9.7"],  # make docs
        # The paper's own library and timm: our files and networks are tested against theirs.
        "dev": [
            "pytest",
            "pytest-xdist",  # tests on several cores
            "mypy",
            "types-pyyaml",
            "types-tabulate",
            "types-tqdm",
            "ruff",
            "dill",
            "robustness",
            "timm",
            "webdataset",
            "pyautoattack",
            "numba",
            "ray",
            "selenium",  # the report in a real browser
            "nbclient",  # the notebooks of docs/notebooks run
            "ipykernel",
        ],
    },
)
