"""A training run: epochs, checkpoints, resuming, the guard, the end."""

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

from classification import progress
from classification.datasets import loader
from classification.datasets.split import Split
from classification.training import distributed, overfitting
from classification.training import evaluate as engine
from classification.training.learner import Learner, NotFinite, Sums, seed_of
from classification.training.schedules import learning_rate
from robust_backbones import attacks
from robust_backbones.checkpoint.formats import FORMAT, FORMAT_VERSION
from robust_backbones.checkpoint.io import load_file, save_file
from robust_backbones.core import results
from robust_backbones.core.errors import UserError
from robust_backbones.core.signals import Stopped, StopSignals

EVAL_BATCH = 200  # images at once, in each process
LAST_GOOD = "last_good.pt"  # the weights of before a collapse


def identity(*sources: Split) -> dict:
    """Of images, for results: a look at each of a million files, hence once for all processes."""
    return distributed.from_first(
        lambda: {
            source.split: {
                "name": source.name,
                "images": len(source),
                "fingerprint": source.fingerprint(),
            }
            for source in sources
        }
    )


class Training:
    """One run, from its folder's checkpoint if there is one.

    Args:
        learner: what learns.
        train: the images.
        settings: all that decides the numbers, in plain JSON types.
        metadata: what the weights' later users need to know; see docs/formats.md.
        folder: for checkpoint, metrics and curves; only process 0 writes.
        data: what identifies the images, see `identity`.
        examine: `(this run)` -> the numbers that an epoch ends with, e.g. `clean_top1`.
        finish: `(this run)`, called after the last epoch; the signals are still watched.
        enough: `(this run)` -> whether to leave the other epochs out; asked before each, and of the
            past alone, so that a resumed run answers alike.
        monitored: split that `examine` looks at, for the log.
        workers: processes that read images, per process.
        save_seconds: longest time between two checkpoints.
    """

    def __init__(
        self,
        learner: Learner,
        train: Split,
        settings: dict,
        metadata: dict,
        folder: Path,
        *,
        data: dict,
        examine: Callable,
        finish: Callable,
        enough: Callable = lambda run: False,
        monitored: str = "test",
        workers: int = 0,
        save_seconds: float = 600,
    ):
        self.learner, self.train, self.data = learner, train, data
        self.settings, self.metadata, self.folder = settings, metadata, Path(folder)
        self.examine, self.finish, self.enough = examine, finish, enough
        self.monitored = monitored
        self.workers, self.save_seconds = workers, save_seconds
        self.epochs = settings["passes"]
        self.batches = loader.steps(train, settings["batch_size"])
        self.epoch = self.batch = 0  # done; of the present epoch
        self.sums, self.history, self.seconds = Sums(), [], 0.0
        self.signals = StopSignals()
        self.writes = distributed.rank() == 0

    def run(self) -> None:
        """Train to the end, or go on to it.

        Raises:
            Stopped: a signal came; all is saved.
            UserError: the loss is not finite, or the disk is full.
        """
        self._resume()
        self.started = time.perf_counter() - self.seconds
        with self.signals.watch():
            size = self.settings["batch_size"]
            done = (self.epoch * self.batches + self.batch) * size
            self.line = progress.ProgressLine(self.epochs * self.batches * size, done)
            while self.epoch < self.epochs and not self._rolled_back() and not self.enough(self):
                self._train_epoch()
                with self.line.paused():
                    self._close_epoch()
            self.finish(self)

    def _resume(self) -> None:
        state = distributed.from_first(self._read)
        if state is None:
            if self.writes:  # a folder that cannot be written to is told of now
                progress.write_history(self.folder / "metrics.jsonl", self.history)
            return
        self.learner.load(state)
        for name in ("epoch", "batch", "history", "seconds"):
            setattr(self, name, state[name])
        self.sums = Sums(**state["sums"]) if self.writes else Sums()
        if self.writes:
            print(
                f"resuming after {self.epoch} of {self.epochs} epochs and {self.batch} of "
                f"{self.batches} steps",
                flush=True,
            )

    def _read(self, name: str = "checkpoint.pt") -> dict | None:
        path = self.folder / name
        if not path.exists():
            return None
        contents = load_file(path)
        needed = {
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
        if not isinstance(contents, dict) or needed - set(contents):
            raise UserError(
                f"{path} is not an unfinished training run; choose another output folder."
            )
        given, wanted = (
            {**part["settings"], "data": part["data"]} for part in (contents, vars(self))
        )
        if different := results.differences(given, wanted):
            raise UserError(
                f"{path} was made with other settings: {different}; give the same ones."
            )
        return contents

    def _save(self, name: str = "checkpoint.pt") -> None:
        """Write all that going on needs; every process must call it."""
        sums = self._total()
        self.saved = time.monotonic()
        if not self.writes:
            return
        contents = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "metadata": self.metadata,
            "settings": self.settings,
            "data": self.data,
            "history": self.history,
            "seconds": self.elapsed(),
            "epoch": self.epoch,
            "batch": self.batch,
            "sums": asdict(sums),
        }
        save_file(contents | self.learner.state(), self.folder / name)

    def elapsed(self) -> float:
        """Wall time of the run so far, all its pieces together."""
        return time.perf_counter() - self.started

    def _total(self) -> Sums:
        loss, right, images = distributed.total(list(vars(self.sums).values()), self.learner.device)
        return Sums(loss, int(right), int(images))

    def _rate(self, update: int) -> float:
        """Learning rate of the present epoch's update, counted from its beginning."""
        settings = self.settings
        per_epoch = self.batches * self.learner.updates_per_batch
        return learning_rate(
            self.epoch * per_epoch + update,
            self.epochs * per_epoch,
            settings["lr"],
            settings["lr_schedule"],
            round(settings["warmup"] * self.batches),
        )

    def _train_epoch(self) -> None:
        settings, updates = self.settings, self.learner.updates_per_batch
        batches = loader.train_batches(
            self.train,
            settings["batch_size"],
            augmentation=settings["augmentation"],
            seed=settings["seed"],
            epoch=self.epoch,
            start=self.batch,
            rank=distributed.rank(),
            world=distributed.world(),
            workers=self.workers,
        )
        self.saved = time.monotonic()
        for x, y in batches:
            rates = [self._rate(self.batch * updates + i) for i in range(updates)]
            seed = seed_of(settings["seed"], self.epoch, self.batch, distributed.rank())
            try:
                sums = self.learner.step(x, y, rates, seed)
            except NotFinite as error:
                self._keep_batch(error)
            self.sums.add(sums)
            self.batch += 1
            self._show(sums)
            self._stop_or_save()

    def _show(self, sums: Sums) -> None:
        if self.writes:
            size = self.settings["batch_size"]
            self.line.show(
                size,
                f"epoch {self.epoch + 1}/{self.epochs}: {self.batch * size}/{self.batches * size} "
                f"images, loss {sums.loss / sums.images:.3f}, accuracy "
                f"{100 * sums.right / sums.images:.1f} %",
            )

    def _stop_or_save(self) -> None:
        """After each step: save if it is time; stop if any process was asked to."""
        due = self.writes and time.monotonic() - self.saved >= self.save_seconds
        stop, due = distributed.total(
            [float(self.signals.requested), float(due)], self.learner.device
        )
        if stop or due:
            self._save()
        if stop:
            raise Stopped

    def _keep_batch(self, error: NotFinite) -> None:
        """Save the images that made the loss not finite, and say where."""
        path = self.folder / f"not_finite_rank{distributed.rank()}.pt"
        place = {"epoch": self.epoch, "batch": self.batch, "settings": self.settings}
        save_file(error.batch | place, path)
        raise UserError(
            f"step {self.batch + 1} of epoch {self.epoch + 1}: {error} {path} has the images."
        ) from None

    def evaluate(
        self, source: Split, attack: dict | None, count: int | None = None
    ) -> engine.Outcome:
        """What the present weights make of all images of the source, or of `count`, the same ones
        each time."""
        sampled = source if count is None else source.sample(count, self.settings["seed"])
        batches = loader.test_batches(
            sampled,
            EVAL_BATCH,
            rank=distributed.rank(),
            world=distributed.world(),
            workers=self.workers,
        )
        seed = seed_of(self.settings["seed"], self.epoch, distributed.rank())
        attacked = attacks.adversary(attack, seed) if attack else None
        found = engine.evaluate(self.learner.result, batches, attacked, self.signals)
        if count is None:
            loader.check_count(source, found.images, len(source))
        return found

    def _close_epoch(self) -> None:
        """Evaluate, note the numbers, save."""
        try:
            tested = self.examine(self)
        except Stopped:
            self._save()
            raise
        sums = self._total()
        record = {
            "epoch": self.epoch + 1,
            "train_loss": sums.loss / sums.images,
            "train_top1": 100 * sums.right / sums.images,
            **tested,
            "lr": self._rate(self.batches * self.learner.updates_per_batch - 1),
            "images_per_second": round(self.line.rate, 1),
            "seconds": round(self.elapsed() - sum(r["seconds"] for r in self.history), 2),
        }
        self._guard(record)
        self.history.append(record)
        self.epoch, self.batch, self.sums = self.epoch + 1, 0, Sums()
        if self.learner.method.guarded and not self._rolled_back():
            self._save(LAST_GOOD)  # first: a run that dies here repeats the epoch
        self._save()
        if self.writes:
            self.show_history()
            self.line.clear()
            print(progress.epoch_line(record, self.epochs, self.monitored), flush=True)

    def _rolled_back(self) -> bool:
        return bool(self.history) and "rolled_back" in self.history[-1]

    def _guard(self, record: dict) -> None:
        """If the epoch of this record was a collapse, take the last good weights again."""
        if not self.learner.method.guarded:
            return
        accuracies = [r["guard_top1"] for r in [*self.history, record]]
        if not overfitting.collapsed(accuracies, min(overfitting.IMAGES, len(self.train))):
            return
        good = distributed.from_first(partial(self._read, LAST_GOOD))
        if good is None:
            lost = self.folder / LAST_GOOD
            raise UserError(f"{lost} is missing, the weights of before a collapse; begin anew.")
        self.learner.load(good)
        record["rolled_back"] = 1
        if self.writes:
            self.line.clear()
            print(overfitting.message(accuracies), flush=True)

    def show_history(self) -> None:
        """Write the numbers of the epochs for people to look at."""
        progress.write_history(self.folder / "metrics.jsonl", self.history)
        progress.write_tensorboard(self.folder / "tensorboard", self.history)
