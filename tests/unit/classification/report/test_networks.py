"""Networks of the same architecture and eps: their names, rows and standard twins."""

from dataclasses import replace

import pytest

from classification.report.contents.build import build_sections, collect
from classification.report.contents.unshown import unshown
from classification.report.networks import is_twin, variant
from classification.report.result_kinds import named
from robust_backbones import zoo
from tests.support.result_grids import row
from tests.support.result_records import detection, transfer

V1, V2 = "torchvision://resnet50.IMAGENET1K_V1", "torchvision://resnet50.IMAGENET1K_V2"
ENGSTROM, WONG = ("robust://resnet50_linf_eps4_" + who for who in ("engstrom2019", "wong2020"))


def record(weights, accuracy=70.0, make=transfer, **more):
    """A record whose training is what the name of its weights says."""
    made = transfer(accuracy=accuracy) if make is transfer else detection(ap=accuracy)
    facts = {"eps": 0.0, "arch": "resnet50", "weights_sha256": weights} | named(weights) | more
    source = {"source": {"dataset": facts.get("pretrained_on")}} if make is transfer else {}
    return replace(made, settings=made.settings | source, weights=weights, **facts)


def sections(records):
    return {section.name: section for section in build_sections(collect(records))}


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        ("robust://resnet50_l2_eps3", ""),
        (WONG, "wong2020"),
        ("Wong2020Fast", "wong2020"),
        ("robust://swin_base_linf_eps4_liu2023", "liu2023"),
        ("robust://clip_vit_b16_fare_linf_eps4_croce2025", "b16 fare croce2025"),
        ("robust://resnet50_sin_in_geirhos2019", "sin in geirhos2019"),
        ("timm://convnext_base.fb_in1k", "fb_in1k"),
        (V2, "IMAGENET1K_V2"),
        ("output/mine/checkpoint.pt", "mine"),
    ],
)
def test_variants(weights, name):
    assert variant(record(weights)) == name


def test_own_networks_are_told_apart_by_recipe_and_not_by_seed():
    def own(name, **source):
        made = transfer(eps=3.0, origin="digits", source={"method": "pgd"} | source)
        return replace(made, weights=name)

    names = [variant(own("a", epochs=30, seed=0)), variant(own("b", epochs=30, seed=1))]
    assert names == ["pgd, 30 epochs"] * 2
    assert variant(own("c", epochs=90, seed=0)) == "pgd, 90 epochs"
    assert variant(own("nets/d.pt", epochs=90)) == "d"  # its seed is not recorded


def test_published_networks_of_one_eps_have_rows_of_their_own():
    found = [
        record("robust://resnet50_l2_eps0", 71.0),
        record(V1, 72.0),
        record(V2, 79.0),  # no published robust network is its twin
        record("robust://resnet50_linf_eps4", 73.0),
        record(ENGSTROM, 74.0),
        record(WONG, 75.0),
    ]
    made = sections(found)
    table = made["curves-fixed-feature"]
    cells = {
        r["architecture"]: [r[key] and r[key].mean for key in ("eps_0", "eps_0.0156863")]
        for r in table.rows
    }
    assert cells == {
        "resnet50": [71, 73],
        "resnet50 (engstrom2019)": [72, 74],
        "resnet50 (wong2020)": [72, 75],
        "resnet50 (IMAGENET1K_V2)": [79, None],
    }
    best = row(made["table1"], mode="fixed-feature", task="cifar10")
    assert best["robust_network"] == "resnet50 (wong2020), eps 4/255"
    assert best["standard_network"] == "resnet50 (IMAGENET1K_V2), eps 0"
    assert not any("several configurations" in w for s in made.values() for w in s.warnings)
    (panel,) = made["figure5"].figures[0].panels.values()
    assert sum(len(series.x) for series in panel) == 4  # accuracies of V1 and V2 are not listed


def test_twins_of_other_pretraining_data_are_compared_with_a_warning():
    robust, twin = "robust://swin_large_linf_eps4_liu2023", "swin_large_patch4_window7_224"
    twin = f"timm://{twin}.ms_in22k_ft_in1k"
    other = "timm://swin_large_patch4_window7_224.ms_in22k"  # not its twin
    arch = zoo.find_model(robust).arch
    assert is_twin(robust, twin) and not is_twin(robust, other) and not is_twin(twin, robust)
    found = [
        record(name, arch=arch, seeds=(seed,), accuracy=70.0 + seed)
        for name in (robust, twin, other)
        for seed in range(3)
    ]
    results = collect(found)
    made = {section.name: section for section in build_sections(results)}
    (paired,) = [s for name, s in made.items() if name == "paired"]
    assert paired.rows[0]["recipes_differ_in"] == "pretraining data"
    warning = "pretrained on different data: imagenet, imagenet22k+imagenet."
    assert any(warning in text for text in made["table1"].warnings)
    assert [group.key.pretrained_on for group in results.groups] == ["imagenet", "imagenet22k"]


def test_a_published_twin_of_another_architecture_is_in_the_row_of_its_network():
    robust, twin = (
        "robust://convnext_tiny_cvst_linf_eps4_singh2023",
        "timm://convnext_tiny.fb_in1k",
    )
    found = [record(robust, 75.0), record(twin, 70.0, arch="timm:convnext_tiny")]
    made = sections(found)
    (only,) = made["section4-3"].rows
    assert (only["architecture"], only["measured"].mean) == ("timm:convnext_tiny_cvst", 5)
    assert only["recipes_differ_in"] == "architecture"
    words = "timm:convnext_tiny_cvst is its published twin, a timm:convnext_tiny."
    assert any(words in text for text in made["curves-fixed-feature"].warnings)
    assert made["table1"].rows[0]["standard_network"] == "timm:convnext_tiny, eps 0"


def test_detectors_of_one_eps_and_several_standard_ones_are_not_merged():
    found = [
        record(weights, ap, detection)
        for weights, ap in ((V2, 45.0), (V1, 40.0), (ENGSTROM, 41.0), (WONG, 42.0))
    ]
    made = sections(found)["figure4"]
    aps = {r["backbone"]: r["ap"].mean for r in made.rows}
    assert aps == {
        "standard": 40,
        "standard (IMAGENET1K_V2)": 45,
        "eps 4/255 (engstrom2019)": 41,
        "eps 4/255 (wong2020)": 42,
    }
    assert any(f"from the standard backbone {V1}" in text for text in made.warnings)


def test_networks_trained_on_stylized_images_are_in_figure_8():
    sin, both = (f"robust://resnet50_sin{more}_geirhos2019" for more in ("", "_in"))
    augmix = "robust://resnet50_augmix_hendrycks2020"
    found = [
        record(weights, accuracy)
        for weights, accuracy in (
            ("robust://resnet50_l2_eps0", 71.0),
            ("robust://resnet50_l2_eps3", 73.0),
            (sin, 60.0),
            (both, 65.0),
            (augmix, 66.0),
        )
    ]
    results = collect(found)
    made = build_sections(results)
    (figure8,) = [section for section in made if section.name == "figure8"]
    cells = {r["stylized_network"]: (r["robust"].mean, r["stylized"].mean) for r in figure8.rows}
    assert cells == {"sin geirhos2019": (73, 60), "sin in geirhos2019": (73, 65)}
    (problem,) = unshown(results, made)  # AugMix
    assert "the network is neither standard nor robust" in problem
