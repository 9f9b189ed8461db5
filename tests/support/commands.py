"""All commands of the project, and common errors of each."""

from tests.support import ROOT

HEAVY = ("torch", "torchvision", "detectron2", "matplotlib", "scipy", "sklearn")  # slow to import


LAUNCHER = "classification.training.torchrun"  # its options are torchrun's, which imports torch


def commands() -> dict[str, list[str]]:
    """Arguments of Python that start each command from the project's folder, by name."""
    found = {}
    for folder in ("classification", "robust_backbones", "tools"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if '\nif __name__ == "__main__":' in path.read_text(encoding="utf-8"):
                place = path.relative_to(ROOT)
                module = ".".join(place.with_suffix("").parts).removesuffix(".__main__")
                words = [str(place)] if folder == "tools" else ["-m", module]
                found[words[-1]] = words
    del found[LAUNCHER]
    return found


# Command -> arguments with an invalid value or a missing file. OUT is a new folder. check_data.py
# is not tested with a missing file, because it finds out only after importing Detectron2.
MISTAKES = {
    "classification": ["nothing"],
    "classification.compare": ["missing --trials 0", "missing --weights a.pt b.pt --output OUT"],
    "classification.datasets": ["check nothing", "fetch cifar10 --data"],
    "classification.interpret": [
        "--weights missing.pt --dataset nothing --output OUT",
        "--weights missing.pt --dataset digits --output OUT",
    ],
    "classification.pretrain": [
        "--dataset digits --eps -1 --output OUT",
        "--dataset cifar10 --output OUT",
    ],
    "classification.report": ["--output", "missing --output OUT"],
    "classification.robustness_eval": [
        "--weights missing.pt --dataset digits --steps 0 --output OUT",
        "--weights robust://resnet50_l2_eps3 --output OUT",
        "--weights missing.pt --dataset digits --output OUT",
    ],
    "classification.study": ["run missing.yaml --jobs 0", "run missing.yaml"],
    "classification.transfer": [
        "--weights missing.pt --dataset digits --trials 0",
        "--weights missing.pt --dataset digits",
    ],
    "robust_backbones": ["nothing", "zoo show resnet50_l2_eps4"],
    "tools/attack_net.py": ["--config missing.yaml --steps 0", "--config missing.yaml"],
    "tools/check_data.py": ["mine=coco:missing:missing.json --list x"],
    "tools/convert.py": ["missing.pt OUT/weights.txt", "missing.pt OUT/weights.pth"],
    "tools/corrupt_net.py": ["--config missing.yaml --severities 6", "--config missing.yaml"],
    "tools/demo.py": ["--nothing", "--output README.md"],
    "tools/evaluate.py": [
        "missing.json --annotations missing.json --tasks nothing",
        "missing.json --annotations missing.json",
    ],
    "tools/install_detectron2.py": ["--nothing"],
    "tools/make_shards.py": ["missing OUT --images-per-shard 0", "missing OUT"],
    "tools/train_net.py": ["--config missing.yaml --num-gpus -1", "--config missing.yaml"],
    "tools/visualize.py": [
        "--output OUT --dataset digit_scenes_val --threshold 2",
        "--output OUT --config missing.yaml",
    ],
}
