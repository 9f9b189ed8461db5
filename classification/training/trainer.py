"""Training run with checkpoints, resuming, and checks for catastrophic overfitting."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import NoReturn

from classification import known_classes, progress
from classification.datasets import loader
from classification.datasets.split import Split
from classification.models import save_classifier
from classification.training import distributed, overfitting
from classification.training.evaluate import Evaluation, adversary, evaluate
from classification.training.learner import Learner, NotFinite, TrainSums, seed_of
from classification.training.recipes import learning_rate
from classification.training.settings import METHOD_DEFAULTS, AttackSettings
from robust_backbones.checkpoint.io import load_file, save_file
from robust_backbones.core import results, run_log
from robust_backbones.core.errors import UserError
from robust_backbones.core.signals import Stopped, StopSignals
from robust_backbones.finite import check_weights

EVAL_BATCH = 200  # images per batch of an evaluation, in each process
LAST_GOOD = "last_good.pt"  # checkpoint of the last epoch without catastrophic overfitting
CHECKPOINT_KEYS = {  # entries of a checkpoint in addition to the format
    "metadata",
    "model",
    "optimizer",
    "scaler",
    "epoch",
    "batch",
    "sums",
    "settings",
    "history",
    "seconds",
    "data",
}


def identity(*sources: Split) -> dict:
    """Return the name, size, fingerprint and origin of each split, for result files.

    Only process 0 computes fingerprints, because each fingerprint accesses all files of a split.
    """
    return distributed.from_first(lambda: {source.split: source.describe() for source in sources})


class Training:
    """A training run, which resumes from the checkpoint in its folder if there is one.

    Args:
        learner: model, optimizer and training settings.
        train: training images.
        recorded: all settings of the run, in plain JSON types. A run resumes only with equal
            settings.
        metadata: metadata that is saved with the weights; see docs/reference/formats.md.
        folder: folder for checkpoint, metrics and curves. Only process 0 writes.
        data: description of the images, from `identity`.
        examine: function that gets this run after each epoch, and returns the numbers for the
            epoch's record, such as `clean_top1`.
        finish: function that gets this run after the last epoch. The function may check for stop
            signals.
        enough: function that gets this run before each epoch, and returns whether to skip the
            remaining epochs. The function must depend on the history only, so that a resumed run
            makes the same decision.
        monitored: name of the split that `examine` evaluates, for the log.
        workers: number of processes that read images, per training process.
        save_seconds: longest time between two checkpoints, in seconds.
    """

    def __init__(
        self,
        learner: Learner,
        train: Split,
        recorded: dict,
        metadata: dict,
        folder: Path,
        *,
        data: dict,
        examine: Callable[["Training"], dict],
        finish: Callable[["Training"], None],
        enough: Callable[["Training"], bool] = lambda run: False,
        monitored: str = "test",
        workers: int = 0,
        save_seconds: float = 600,
    ):
        self.learner, self.train, self.data = learner, train, data
        self.recorded, self.metadata, self.folder = recorded, metadata, Path(folder)
        self.examine, self.finish, self.enough = examine, finish, enough
        self.monitored = monitored
        self.workers, self.save_seconds = workers, save_seconds
        self.settings = learner.settings
        self.guarded = METHOD_DEFAULTS[self.settings.method].guarded
        self.epochs = self.settings.data_epochs
        self.batches = loader.steps(train, self.settings.batch_size)
        self.epoch = self.batch = 0  # finished epochs, and finished batches of the current epoch
        self.sums, self.history, self.seconds = TrainSums(), [], 0.0
        self.signals = StopSignals()
        self.writes = distributed.rank() == 0
        # Loaders of `evaluate`, by the identity of the split and the number of images. Each entry
        # holds the split, so that no other split gets its identity.
        self._tests: dict[tuple[int, int | None], tuple[Split, loader.TestLoader]] = {}

    def run(self) -> None:
        """Train the remaining epochs, from the checkpoint in the folder if there is one.

        Raises:
            Stopped: a stop signal arrived, and the run was saved.
            UserError: the loss or the gradients are not finite, or the disk is full.
        """
        self._resume()
        self.started = time.perf_counter() - self.seconds
        with self.signals.watch(), closing(self._train_batches()) as batches:
            size = self.settings.batch_size
            done = (self.epoch * self.batches + self.batch) * size
            self.line = progress.ProgressLine(self.epochs * self.batches * size, done)
            self._show(TrainSums())
            while self.epoch < self.epochs and not self._rolled_back() and not self.enough(self):
                self._train_epoch(batches)
                with self.line.paused():
                    self._close_epoch()
            self.finish(self)
        self._tests.clear()  # ends their worker processes

    def _resume(self) -> None:
        state = distributed.from_first(self._read)
        if state is None:
            if self.writes:  # fail before training if the folder is not writable
                progress.write_history(self.folder / "metrics.jsonl", self.history)
            return
        self.learner.load(state)
        for name in ("epoch", "batch", "history", "seconds"):
            setattr(self, name, state[name])
        self.sums = TrainSums(**state["sums"])
        if self.writes:
            run_log.say(
                f"resuming after {self.epoch} of {self.epochs} epochs and {self.batch} of "
                f"{self.batches} steps"
            )

    def _read(self, name: str = "checkpoint.pt") -> dict | None:
        path = self.folder / name
        if not path.exists():
            return None
        contents = load_file(path)
        if not isinstance(contents, dict) or CHECKPOINT_KEYS - set(contents):
            raise UserError(f"{path}: not an unfinished training run. Choose another --output.")
        if names := known_classes.class_names(contents["metadata"]):
            known_classes.check_names(names, self.train.class_names, str(path), self.train.name)
        found = contents["settings"] | {"data": contents["data"]}
        if different := results.differences(found, self.recorded | {"data": self.data}):
            raise UserError(
                f"{path}: the unfinished run has different settings: {different}. Use the same "
                "settings, or choose another --output."
            )
        return contents

    def _save(self, name: str = "checkpoint.pt") -> None:
        """Write the checkpoint for resuming. Only process 0 writes."""
        self.saved = time.monotonic()
        if not self.writes:
            return
        progress_state = {
            "settings": self.recorded,
            "data": self.data,
            "history": self.history,
            "seconds": self.elapsed(),
            "epoch": self.epoch,
            "batch": self.batch,
            "sums": asdict(self.sums),
        }
        state = self.learner.state()
        for part in {"model", "training_model"} & state.keys():
            check_weights(state[part], self.folder / name)
        save_classifier(
            self.folder / name, state.pop("model"), self.metadata, **progress_state, **state
        )

    def elapsed(self) -> float:
        """Return the wall time of the run in seconds, including the time before it was resumed."""
        return time.perf_counter() - self.started

    def _lr(self, update: int) -> float:
        """Return the learning rate of an update, given its index in the current epoch."""
        settings = self.settings
        per_epoch = self.batches * settings.updates_per_batch
        return learning_rate(
            self.epoch * per_epoch + update,
            self.epochs * per_epoch,
            settings.lr,
            settings.lr_schedule,
            round(settings.warmup * self.batches),
        )

    def _train_batches(self) -> loader.Pairs:
        """Return the batches of all remaining epochs."""
        settings = self.settings
        return loader.train_batches(
            self.train,
            settings.batch_size,
            augmentation=settings.augmentation,
            seed=settings.seed,
            epoch=self.epoch,
            epochs=self.epochs - self.epoch,
            start=self.batch,
            rank=distributed.rank(),
            world=distributed.world(),
            workers=self.workers,
            device=self.learner.device,
        )

    def _train_epoch(self, batches: loader.Pairs) -> None:
        settings, updates = self.settings, self.settings.updates_per_batch
        self.saved = time.monotonic()
        for x, y in islice(batches, self.batches - self.batch):
            lrs = [self._lr(self.batch * updates + i) for i in range(updates)]
            seed = seed_of(settings.seed, self.epoch, self.batch, distributed.rank())
            self.learner.step(x, y, lrs, seed)
            self.batch += 1
            if self.learner.due or self.batch == self.batches:
                self._report()

    def _report(self) -> None:
        """Handle everything that waits for the device: numbers, errors, signals and checkpoints.

        Every process must call this function after the same steps.
        """
        sums, error = TrainSums(), None
        try:
            sums = self.learner.report()
        except NotFinite as found:
            error = found
        due = self.writes and time.monotonic() - self.saved >= self.save_seconds
        flags = [error is not None, self.signals.requested, due]
        numbers = [sums.loss, sums.correct, sums.images, *map(float, flags)]
        loss, correct, images, failed, stop, due = distributed.total(numbers, self.learner.device)
        if failed:
            self._fail(error)
        sums = TrainSums(loss, int(correct), int(images))
        self.sums.add(sums)
        self._show(sums)
        if stop or due:
            self._save()
        if stop:
            raise Stopped

    def _show(self, sums: TrainSums) -> None:
        if not self.writes or self.epoch == self.epochs:
            return
        size = self.settings.batch_size
        doing = f"epoch {self.epoch + 1}/{self.epochs}: "
        doing += f"{self.batch * size}/{self.batches * size} images"
        if sums.images:
            doing += f", loss {sums.loss / sums.images:.3f}"
            doing += f", accuracy {100 * sums.correct / sums.images:.1f} %"
        self.line.show(sums.images, doing)

    def _fail(self, error: NotFinite | None) -> NoReturn:
        """Save the batch of a non-finite update, and raise a UserError with the path.

        Args:
            error: error of this process; None if only other processes failed.
        """
        if error is None:
            distributed.await_failure()
        path = self.folder / f"not_finite_rank{distributed.rank()}.pt"
        batch = self.batch - 1 - error.steps_ago
        step = {"epoch": self.epoch, "batch": batch, "settings": self.recorded}
        save_file(error.batch | step, path)
        raise UserError(
            f"step {batch + 1} of epoch {self.epoch + 1}: {error} The images are in {path}."
        ) from None

    def evaluate(
        self, source: Split, attack: AttackSettings | None, count: int | None = None
    ) -> Evaluation:
        """Evaluate the current weights.

        Calls with the same split and number of images share their worker processes.

        Args:
            source: images to evaluate on.
            attack: attack on the images; None: clean images.
            count: number of images, which are the same in each call; None: all images.
        """
        key = (id(source), count)
        if key not in self._tests:
            sampled = source if count is None else source.sample(count, self.settings.seed)
            self._tests[key] = (
                source,
                loader.TestLoader(
                    sampled,
                    EVAL_BATCH,
                    rank=distributed.rank(),
                    world=distributed.world(),
                    workers=self.workers,
                    device=self.learner.device,
                ),
            )
        batches = self._tests[key][1]
        seed = seed_of(self.settings.seed, self.epoch, distributed.rank())
        attacker = adversary(attack, seed, self.learner.device) if attack else None
        found = evaluate(self.learner.result, batches, attacker, self.signals)
        if count is None:
            loader.check_count(source, found.images, len(source))
        return found

    def _close_epoch(self) -> None:
        """End an epoch: evaluate, extend the history, and save a checkpoint."""
        try:
            examined = self.examine(self)
        except Stopped:
            self._save()
            raise
        record = {
            "epoch": self.epoch + 1,
            "train_loss": self.sums.loss / self.sums.images,
            "train_top1": 100 * self.sums.correct / self.sums.images,
            **examined,
            "lr": self._lr(self.batches * self.settings.updates_per_batch - 1),
            "images_per_second": round(self.line.rate, 1),
            "seconds": round(self.elapsed() - sum(r["seconds"] for r in self.history), 2),
        }
        if self.guarded:
            self._roll_back_collapse(record)
        self.history.append(record)
        self.epoch, self.batch, self.sums = self.epoch + 1, 0, TrainSums()
        if self.guarded and not self._rolled_back():
            # Saved before the checkpoint: if the run is killed in between, it repeats the epoch.
            self._save(LAST_GOOD)
        self._save()
        if self.writes:
            self.write_history()
            self.line.clear()
            run_log.say(progress.epoch_line(record, self.epochs, self.monitored))

    def _rolled_back(self) -> bool:
        return bool(self.history) and "rolled_back" in self.history[-1]

    def _roll_back_collapse(self, record: dict) -> None:
        """Restore the last good weights if robustness collapsed in the epoch of this record."""
        accuracies = [r["guard_top1"] for r in [*self.history, record]]
        if not overfitting.collapsed(accuracies, min(overfitting.IMAGES, len(self.train))):
            return
        good = distributed.from_first(partial(self._read, LAST_GOOD))
        if good is None:
            lost = self.folder / LAST_GOOD
            raise UserError(
                f"{lost} is missing: it contained the weights from before a collapse. Start the "
                "run again in another --output."
            )
        self.learner.load(good)
        record["rolled_back"] = 1
        if self.writes:
            self.line.clear()
            run_log.say(overfitting.message(accuracies))

    def write_history(self) -> None:
        """Write the records of the epochs to metrics.jsonl and TensorBoard."""
        progress.write_history(self.folder / "metrics.jsonl", self.history)
        progress.write_tensorboard(self.folder / "tensorboard", self.history)
