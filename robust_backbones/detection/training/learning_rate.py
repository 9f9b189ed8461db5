"""Choose the learning rate of a run from earlier runs, its candidates.

Candidates are runs with `DATASETS.HELD_OUT`. They differ from the run only in their learning rate,
seed and division of the training images.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import yaml
from detectron2.config import CfgNode

from robust_backbones.core.detector_keys import CHOICE
from robust_backbones.core.detector_tasks import main_metric
from robust_backbones.core.errors import UserError
from robust_backbones.core.files import sha256
from robust_backbones.core.results import flatten
from robust_backbones.detection.data.registry import fingerprint
from robust_backbones.detection.data.subset import hold_out
from robust_backbones.detection.model_weights import local_weights
from robust_backbones.detection.training.run import CONFIG, RESULT, has_diverged

LISTED = 3  # maximum number of keys in a message


@dataclass(frozen=True)
class Candidate:
    """A finished run with another learning rate.

    Attributes:
        folder: folder of the run.
        config: flat configuration of the run, `{key: value}`.
        rate: its `SOLVER.BASE_LR`.
        metric: name of the metric by which the runs are compared, AP or mIoU.
        ap: box AP or mIoU on the held-out images in percent, the mean over several training sets;
            None if training diverged or the images have no objects.
        weights_sha256: SHA-256 of its initial weights; None for random weights.
        data: digests of the annotations that it was trained and evaluated on, sorted.
    """

    folder: Path
    config: dict
    rate: float
    metric: str
    ap: float | None
    weights_sha256: str | None
    data: list[str]

    @property
    def held_out(self) -> float:
        """Fraction of the training images that the run was evaluated on."""
        return self.config["DATASETS.HELD_OUT"]

    @property
    def order(self) -> tuple[float, float]:
        """Sort key: the AP, and among equal APs the smaller learning rate."""
        return (-math.inf if self.ap is None else self.ap, -self.rate)


def choose_rate(cfg: CfgNode, folders: Sequence[str], given: Sequence[str] = ()) -> list[str]:
    """Set `SOLVER.BASE_LR` to the learning rate of the candidate with the highest AP or mIoU.

    Args:
        cfg: configuration of a training run after `run_checks.check_inputs`, changed in place. The
            choice is recorded in `SOLVER.CANDIDATES`.
        folders: folders of the candidates.
        given: keys that the user gave on the command line.

    Returns:
        Messages for the user.

    Raises:
        UserError: a candidate is not finished or was evaluated on test images, differs from this
            run in more than learning rate, seed and division of the data, or no candidate has an
            AP.
    """
    if "SOLVER.BASE_LR" in given:
        raise UserError("--choose-lr sets SOLVER.BASE_LR. Remove one of the two.")
    if cfg.DATASETS.HELD_OUT:
        raise UserError(
            f"--choose-lr: DATASETS.HELD_OUT is {cfg.DATASETS.HELD_OUT:g}, but this run trains on "
            "all training images. Set it to 0."
        )
    if len(folders) < 2:
        raise UserError(f"--choose-lr has one run, {folders[0]}. Give at least two.")
    candidates = sorted((_read(Path(folder)) for folder in folders), key=lambda c: c.rate)
    for previous, candidate in zip(candidates, candidates[1:], strict=False):
        if candidate.rate == previous.rate:
            raise UserError(
                f"--choose-lr: {previous.folder} and {candidate.folder} have the same "
                f"SOLVER.BASE_LR, {candidate.rate:g}. Give one run for each learning rate."
            )
    _refuse_others(cfg, candidates)
    best = max(candidates, key=lambda c: c.order)
    if best.ap is None:
        raise UserError(
            f"--choose-lr: no candidate has an {best.metric}. All diverged, or the held-out images "
            f"have no objects. Train others with SOLVER.BASE_LR below {candidates[0].rate:g}."
        )
    cfg.SOLVER.BASE_LR = best.rate
    chosen = cfg.SOLVER.CANDIDATES
    chosen.CHOSEN, chosen.HELD_OUT = best.rate, best.held_out
    chosen.RATES = [c.rate for c in candidates]
    chosen.APS = [c.ap for c in candidates]
    chosen.RUNS = [str(c.folder) for c in candidates]
    tried = ", ".join(f"{c.rate:g}: {_shown(c)}" for c in candidates)
    notes = [
        f"SOLVER.BASE_LR {best.rate:g} has the highest {best.metric} on held-out images ({tried})."
    ]
    if best in (candidates[0], candidates[-1]):
        side = "smaller" if best is candidates[0] else "larger"
        notes.append(
            f"WARNING: {best.rate:g} is at the end of these learning rates. A {side} one may be "
            "better."
        )
    return notes


def _shown(c: Candidate) -> str:
    return "diverged" if c.ap is None else f"{c.metric} {c.ap:.1f}"


def _read(folder: Path) -> Candidate:
    """Read the result of a candidate.

    Raises:
        UserError: the run is not finished, its files are damaged, or it was not evaluated on
            held-out images.
    """
    where = f"--choose-lr {folder}"
    if not folder.is_dir():
        raise UserError(f"{where}: the folder does not exist. Give the OUTPUT_DIR of a run.")
    if not (folder / RESULT).is_file():
        raise UserError(
            f"{where}: the run is not finished, because it has no {RESULT}. Finish it first."
        )
    try:
        result = json.loads((folder / RESULT).read_text(encoding="utf-8"))
        config = flatten(yaml.safe_load((folder / CONFIG).read_text(encoding="utf-8")))
        if result["kind"] != "detection":
            raise ValueError(f"its kind is '{result['kind']}'")
        held_out = config.get("DATASETS.HELD_OUT") or 0
        tests = result["settings"]["DATASETS"]["TEST"]
        found = [main_metric(result["metrics"][name]) for name in tests]
        aps = [value for _, _, value in found if value is not None]
        candidate = Candidate(
            folder,
            config,
            float(config["SOLVER.BASE_LR"]),
            found[0][1],
            fmean(aps) if len(aps) == len(tests) and not has_diverged(folder) else None,
            result["weights_sha256"],
            sorted(part["fingerprint"] for part in result["data"].values()),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{where}: not a valid result of a detector ({reason}). Give the OUTPUT_DIR of a run."
        ) from None
    if not held_out:
        raise UserError(
            f"{where}: the run was evaluated on its test images. A learning rate chosen on them "
            "makes the result too high. Train the candidates with DATASETS.HELD_OUT 0.2."
        )
    return candidate


def _refuse_others(cfg: CfgNode, candidates: list[Candidate]) -> None:
    """Reject candidates whose weights, settings or images differ from this run."""
    own = flatten(yaml.safe_load(cfg.dump()))
    weights = sha256(local_weights(cfg.MODEL.WEIGHTS)) if cfg.MODEL.WEIGHTS else None
    data: dict[float, list[str]] = {}
    for candidate in candidates:
        where = f"--choose-lr {candidate.folder}"
        if candidate.weights_sha256 != weights:
            raise UserError(
                f"{where}: the run started from different weights "
                f"({candidate.config.get('MODEL.WEIGHTS')}) than this run ({cfg.MODEL.WEIGHTS}). "
                "The best learning rate depends on the weights. Give runs with the same weights."
            )
        differ = [
            f"{key} is {candidate.config.get(key)} there, {value} here"
            for key, value in own.items()
            if candidate.config.get(key) != value and not key.startswith(CHOICE)
        ]
        if differ:
            more = f"; and {len(differ) - LISTED} more" if differ[LISTED:] else ""
            raise UserError(
                f"{where}: the run has different settings: {'; '.join(differ[:LISTED])}{more}. "
                "Candidates may differ only in SOLVER.BASE_LR, SEED and DATASETS.HELD_OUT."
            )
        if candidate.held_out not in data:
            data[candidate.held_out] = _digests(cfg, candidate.held_out)
        if len(data) > 1:
            raise UserError(
                f"{where}: DATASETS.HELD_OUT is {candidate.held_out:g}, but another candidate has "
                f"{next(iter(data)):g}. All candidates need the same held-out images."
            )
        if candidate.data != data[candidate.held_out]:
            raise UserError(
                f"{where}: the run used different training images, or their annotations have "
                f"changed. Train the candidates on the current {', '.join(cfg.DATASETS.TRAIN)}."
            )


def _digests(cfg: CfgNode, share: float) -> list[str]:
    """Return the digests of the data of a candidate that holds out a fraction of the images."""
    copy = cfg.clone()
    copy.defrost()
    copy.DATASETS.HELD_OUT = share
    divided = hold_out(copy).DATASETS
    return sorted(fingerprint(name)["fingerprint"] for name in (*divided.TRAIN, *divided.TEST))
