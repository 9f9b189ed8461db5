"""Tables of README.md and docs/results/index.md contain the published numbers."""

from classification.report import published
from robust_backbones import zoo
from tests.support import ROOT
from tests.support.generated_tables import check_table

PAGE = "docs/results/index.md"
MODELS = (
    "resnet18_l2_eps3",
    "resnet50_l2_eps0",
    "resnet50_l2_eps3",
    "resnet50_linf_eps4",
    "wide_resnet50_4_l2_eps3",
    "wide_resnet50_2_linf_eps4_chen2024",
    "convnext_tiny_cvst_linf_eps4_singh2023",
    "vit_base_cvst_linf_eps4_singh2023",
    "convnext_large_linf_eps4_liu2023",
    "swin_large_linf_eps4_liu2023",
)
DETECTION = (  # label, keys of classification/report/published.yaml
    ("VOC, Faster R-CNN, box AP", "voc_detection", "bbox"),
    ("COCO, Faster R-CNN, box AP", "coco_detection", "bbox"),
    ("COCO, Mask R-CNN, box AP", "coco_instance", "bbox"),
    ("COCO, Mask R-CNN, mask AP", "coco_instance", "segm"),
)


def test_detection():
    rows = [["experiment", "standard", "robust", "gain", "this code"]]
    for label, experiment, task in DETECTION:
        numbers = published.numbers()["figure4"][experiment][task]
        cells = [
            f"{numbers[kind]:.2f}"
            + (f" ± {numbers[f'{kind}_sd']:.2f}" if "standard_sd" in numbers else "")
            for kind in ("standard", "robust")
        ]
        gain = f"{numbers['robust'] - numbers['standard']:+.2f}"
        rows.append([label, *cells, gain, "not run"])
    check_table(PAGE, "published_detection", rows)


def test_classification():
    found = published.numbers()
    rows = [["task", "fixed: standard", "robust", "gain", "full: standard", "robust", "gain"]]
    for i, task in enumerate(found["tasks"]):
        row = [task]
        for mode in ("fixed-feature", "full-network"):
            standard, robust = (found["table1"][mode][kind][i] for kind in ("standard", "robust"))
            row += [f"{standard:.2f}", f"{robust:.2f}", f"{robust - standard:+.2f}"]
        rows.append(row)
    check_table(PAGE, "published_classification", rows)


def test_models_of_the_readme():
    rows = [["name", "backbone", "clean", "AutoAttack"]]
    for name in MODELS:
        model = zoo.MODELS[name]
        robust = "-" if model.robust_accuracy is None else f"{model.robust_accuracy:.1f}"
        rows.append([f"`{name}`", model.arch, f"{model.accuracy:.1f}", robust])
    check_table("README.md", "zoo", rows)
    assert f"Ten of the {len(zoo.MODELS)} " in (ROOT / "README.md").read_text(encoding="utf-8")
