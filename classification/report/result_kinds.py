"""Readers of the fields that differ between kinds of results.

A reader is a function `(contents, common) -> fields`. `contents` is the contents of the file.
`common` has the fields of `records.Record` that all kinds have. The reader returns further fields.
It raises KeyError, TypeError, AttributeError or ValueError for invalid contents.
"""

from __future__ import annotations

from functools import cache

from classification.report.conditions import Condition, read_calibration, read_conditions
from robust_backbones import sources, zoo
from robust_backbones.core.detector_tasks import TASKS


def _transfer(contents: dict, common: dict) -> dict:
    settings, metrics = contents["settings"], contents["metrics"]
    trials = metrics["trials"]
    calibration = read_calibration(metrics.get("calibration"), len(trials))
    return {
        "mode": settings["mode"],
        "protocol": settings["protocol"],
        "downscale": settings.get("downscale"),
        "metric": metrics["metric"],
        "accuracies": tuple(_number(row["accuracy"]) for row in trials),
        "seeds": tuple(row["seed"] for row in trials),
        "condition": Condition(calibration=calibration),
        "conditions": read_conditions(metrics),
        **network(settings, common["weights"], common["labels"]),
    }


def _detection(contents: dict, common: dict) -> dict:
    config, metrics = contents["settings"], contents["metrics"]
    model = config["MODEL"]
    dataset = next(iter(config["DATASETS"]["TEST"]), "")
    found = metrics[dataset]
    weights = model["WEIGHTS"]
    known = named(weights) or _from_labels(common["labels"])
    known = {"arch": model.get("ROBUST", {}).get("ARCH", "")} | known
    known_tasks = {name: task for name, task in TASKS.items() if name in found}
    values = {name: found[name].get(task.main) for name, task in known_tasks.items()}
    values = {name: _number(value) for name, value in values.items() if value is not None}
    name = next(iter(values), next(iter(known_tasks), "bbox"))
    value = values.get(name)
    _check_learning_rates(config.get("SOLVER", {}))
    return {
        "dataset": dataset,
        "weights": weights,
        "metric": f"{name} {TASKS[name].main}",
        "accuracies": () if value is None else (value,),
        "seeds": () if value is None else (contents["seed"],),
        **known,
    }


def _check_learning_rates(solver: dict) -> None:
    """Check the types of the learning rate and of the candidates that it was chosen from."""
    candidates = solver.get("CANDIDATES") or {}
    rates = candidates.get("RATES") or []
    chosen = [candidates["CHOSEN"], candidates["HELD_OUT"]] if rates else []
    for number in (solver.get("BASE_LR", 0.0), *rates, *chosen):
        _number(number)


def _from_labels(labels: dict) -> dict:
    """Return eps from the study's axis `eps`, for weights whose file does not record it."""
    try:
        return {"eps": float(labels["eps"]), "constraint": "l2"}
    except (KeyError, TypeError, ValueError):
        return {}


def _pretrain(contents: dict, common: dict) -> dict:
    settings = contents["settings"]
    value = _number(contents["metrics"]["clean_top1"])
    return {
        "constraint": settings["constraint"],
        "eps": float(settings["eps"]),
        "pretrained_on": settings["dataset"],
        "weights": str(common["path"].parent / "checkpoint.pt"),
        "metric": "top1",
        "accuracies": (value,),
        "seeds": (contents["seed"],),
    }


def _robustness(contents: dict, common: dict) -> dict:
    value = _number(contents["metrics"]["clean_top1"])
    return {
        "metric": "top1",
        "accuracies": (value,),
        "seeds": (contents["seed"],),
        # `eps` in the settings belongs to the attack. The settings do not record the training.
        **named(common["weights"]),
    }


def _interpret(contents: dict, common: dict) -> dict:
    """Return the fields of a run over several networks, whose numbers are in `Record.metrics`."""
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


def network(settings: dict, weights: str, labels: dict) -> dict:
    """Return how a network was trained, from the name of its weights and from its file.

    If the file does not record the dataset, the study's label `pretrained_on` is used.

    Args:
        settings: settings of the result, whose entry `source` describes the file.
        weights: name or path of the weights, as the user gave it.
        labels: labels of the study's run.
    """
    if "arch" in (known := named(weights)):
        return known
    recorded = {k: v for k, v in (settings.get("source") or {}).items() if v is not None}
    source = sources.training(sources.tag(weights)) | recorded
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
def named(weights: str) -> dict:
    """Return what the name of weights says about their network; `{}` for paths and URLs."""
    if model := zoo.known(weights):
        return {
            "arch": model.arch,
            "constraint": model.constraint if model.eps else "l2",
            "eps": model.eps,
            "pretrained_on": model.pretrained_on,
        }
    if not (facts := sources.training(sources.tag(weights))):
        return {}
    eps = 0.0 if facts["method"] == "standard" else None
    return {"constraint": "l2", "eps": eps, "pretrained_on": facts.get("dataset", "")}


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"accuracy {value!r} is not a number")
    return float(value)
