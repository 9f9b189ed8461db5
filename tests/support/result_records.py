"""Records as `records.read` would give them, made in memory."""

from pathlib import Path

from classification.datasets.specs import DATASETS
from classification.report.records import Record


def transfer(
    task="cifar10",
    arch="resnet18",
    eps=0.0,
    accuracy=90.0,
    *,
    mode="fixed-feature",
    seed=0,
    protocol="clean",
    origin="imagenet",
    norm="l2",
    downscale=None,
    images=("t", "v"),
    folder=None,
    version="0.1.0",
    simulated=False,
    **settings,
) -> Record:
    """One trial."""
    shown = f"{eps * 255:g}" if norm == "linf" else f"{eps:g}"
    name = f"{arch}_{norm}_eps{shown}"
    weights = f"robust://{name}" if origin == "imagenet" else f"nets/{origin}-{name}/checkpoint.pt"
    train, test = images
    place = f"{mode}-{task}-{protocol}-{origin}-{name}-{downscale}-{seed}"
    return Record(
        path=Path(folder or "nowhere", place, "result.json"),
        kind="transfer",
        dataset=task,
        mode=mode,
        protocol=protocol,
        downscale=downscale,
        arch=arch,
        constraint=norm if eps else "l2",
        eps=eps,
        weights=weights,
        pretrained_on=origin,
        accuracies=(accuracy,),
        seeds=(seed,),
        metric=DATASETS[task].metric,
        seed=seed,
        settings={
            "image_size": 224,
            "downscale": downscale,
            "seed": seed,
            "protocol": protocol,
            "mode": mode,
            "dataset": task,
            "weights": weights,
        }
        | settings,
        data={
            "train": {"images": 100, "fingerprint": train},
            "test": {"images": 50_000, "fingerprint": test},
        },
        weights_sha256=f"digest of {weights}",
        code_version=version,
        simulated=simulated,
    )


def detection(
    dataset="voc_2007_test",
    eps=0.0,
    ap=50.0,
    seed=0,
    masks=None,
    weights=None,
    iterations=1000,
    labels=None,
) -> Record:
    found = {"bbox": {"AP": ap}} | ({"segm": {"AP": masks}} if masks else {})
    config = {
        "MODEL": {
            "WEIGHTS": weights or f"robust://resnet50_l2_eps{eps:g}",
            "MASK_ON": masks is not None,
        },
        "SOLVER": {"MAX_ITER": iterations},
        "SEED": seed,
        "OUTPUT_DIR": f"out{seed}",
    }
    return Record(
        path=Path("nowhere", f"{dataset}-{eps}-{seed}-{iterations}", "result.json"),
        kind="detection",
        dataset=dataset,
        arch="resnet50",
        constraint="l2",
        eps=None if weights else eps,
        weights=config["MODEL"]["WEIGHTS"],
        accuracies=(ap,),
        seeds=(seed,),
        metric="bbox AP",
        seed=seed,
        settings=config,
        metrics={dataset: found},
        weights_sha256=config["MODEL"]["WEIGHTS"],
        labels=labels or {},
    )


def pretraining(arch="resnet18", eps=0.0, accuracy=80.0, origin="digits", norm="l2") -> Record:
    weights = f"nets/{origin}-{arch}_{norm}_eps{eps:g}/checkpoint.pt"
    return Record(
        path=Path(weights).parent / "result.json",
        kind="pretrain",
        dataset=origin,
        arch=arch,
        constraint=norm,
        eps=eps,
        weights=weights,
        pretrained_on=origin,
        accuracies=(accuracy,),
        seeds=(0,),
        metric="top1",
        settings={"arch": arch, "eps": eps},
    )
