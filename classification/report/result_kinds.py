"""What a result file of each kind says of a run, as fields of `records.Record`.

A reader is `(contents of the file, fields that all kinds have) -> more fields`; it raises KeyError,
TypeError, AttributeError or ValueError for contents that are not such a result.
"""

from __future__ import annotations

from functools import cache

from robust_backbones import zoo


def _transfer(contents: dict, usual: dict) -> dict:
    settings, metrics = contents["settings"], contents["metrics"]
    trials = metrics["trials"]
    return {
        "mode": settings["mode"],
        "protocol": settings["protocol"],
        "downscale": settings.get("downscale"),
        "metric": metrics["metric"],
        "accuracies": tuple(_number(row["accuracy"]) for row in trials),
        "seeds": tuple(row["seed"] for row in trials),
        **_network(settings, usual["weights"], usual["labels"]),
    }


def _detection(contents: dict, usual: dict) -> dict:
    config, metrics = contents["settings"], contents["metrics"]
    model = config["MODEL"]
    dataset = next(iter(config["DATASETS"]["TEST"]), "")
    found = metrics[dataset]
    weights = model["WEIGHTS"]
    known = _published(weights) or _labelled(usual["labels"])
    known = {"arch": model.get("ROBUST", {}).get("ARCH", "")} | known
    aps = {task: numbers.get("AP") for task, numbers in found.items()}
    aps = {task: None if ap is None else _number(ap) for task, ap in aps.items()}
    task = "bbox" if aps.get("bbox") is not None else "segm"
    ap = aps.get(task)
    return {
        "dataset": dataset,
        "weights": weights,
        "metric": f"{task} AP",
        "accuracies": () if ap is None else (ap,),
        "seeds": () if ap is None else (contents["seed"],),
        **known,
    }


def _labelled(labels: dict) -> dict:
    """What a study's axis `eps` says of weights whose file says nothing."""
    try:
        return {"eps": float(labels["eps"]), "constraint": "l2"}
    except (KeyError, TypeError, ValueError):
        return {}


def _pretrain(contents: dict, usual: dict) -> dict:
    settings = contents["settings"]
    value = _number(contents["metrics"]["clean_top1"])
    return {
        "constraint": settings["constraint"],
        "eps": float(settings["eps"]),
        "pretrained_on": settings["dataset"],
        "weights": str(usual["path"].parent / "checkpoint.pt"),
        "metric": "top1",
        "accuracies": (value,),
        "seeds": (contents["seed"],),
    }


def _robustness(contents: dict, usual: dict) -> dict:
    value = _number(contents["metrics"]["clean_top1"])
    return {
        "metric": "top1",
        "accuracies": (value,),
        "seeds": (contents["seed"],),
        # Its settings say nothing of the network's training; `eps` there is the attack's.
        **(_published(usual["weights"]) or {}),
    }


def _interpret(contents: dict, usual: dict) -> dict:
    """Of several networks at once: its numbers are shown as they are."""
    if not all(isinstance(row, dict) for row in contents["metrics"]["networks"].values()):
        raise ValueError("networks without numbers")
    names = contents["settings"].get("weights") or {}
    return {"weights": ", ".join(map(str, names.values())) if isinstance(names, dict) else names}


READERS = {
    "transfer": _transfer,
    "detection": _detection,
    "pretrain": _pretrain,
    "robustness": _robustness,
    "interpret": _interpret,
}


def _network(settings: dict, weights: str, labels: dict) -> dict:
    """How the network that a run is about was trained, by its name, its file, or a study's axis
    `pretrained_on` for files that do not say."""
    if known := _published(weights):
        return known
    source = settings.get("source") or {}
    method, eps = source.get("method"), source.get("eps")
    found = {
        "constraint": source.get("constraint") or "l2",
        "pretrained_on": source.get("dataset") or str(labels.get("pretrained_on") or ""),
        "assumed_standard": method is None and eps is None,
    }
    if arch := source.get("arch"):
        found["arch"] = arch
    if method in (None, "standard") and not eps:
        return found | {"constraint": "l2", "eps": 0.0}
    return found | {"eps": None if eps is None else float(eps)}


@cache
def _published(weights: str) -> dict | None:
    if not (model := zoo.known(weights)):
        return None
    return {
        "arch": model.arch,
        "constraint": model.constraint if model.eps else "l2",
        "eps": model.eps,
        "pretrained_on": "imagenet",
    }


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"accuracy {value!r} is not a number")
    return float(value)
