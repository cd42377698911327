"""The folder of a run: what lies where, and when it may be written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from fastssl.errors import UserError
from fastssl.files import cannot_write


@dataclass(frozen=True)
class RunFolder:
    """A run's files. Nothing else in the folder is read, written or removed."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint.pt"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def table(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def scores(self) -> Path:
        return self.path / "scores.json"

    def scores_on(self, name: str) -> Path:
        """The scores on images other than the run's own."""
        return self.path / f"scores-{name}.json"

    def tracked_on(self, name: str) -> Path:
        """The picture of masks that were tracked through the videos of a data set."""
        return self.path / f"tracked-{name}.gif"

    def tracked(self) -> list[Path]:
        """All of these that there are."""
        return sorted(self.path.glob(self.tracked_on("*").name))

    @property
    def tuned(self) -> Path:
        return self.path / "tuned.json"

    def tuned_on(self, name: str) -> Path:
        """What fine-tuning came to on images other than the run's own."""
        return self.path / f"tuned-{name}.json"

    @property
    def tuning(self) -> Path:
        """The state of a fine-tuning that is not at its end."""
        return self.path / "tuning.pt"

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def check(self, *, resume: bool, overwrite: bool) -> None:
        """Refuses a path that is no folder, and one whose run would be lost or is missing, before any work is done.

        Raises:
            UserError: saying what to give instead.
        """
        if resume and overwrite:
            raise UserError("--resume and --overwrite exclude each other: give one of them")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"{self.path} is a file: give a folder to --out")
        if resume and not self.checkpoint.exists():
            raise UserError(f"{self.path} holds no checkpoint to resume: start the run without --resume")
        if not (resume or overwrite) and (self.checkpoint.exists() or self.config.exists()):
            raise UserError(
                f"{self.path} holds a run: --resume continues it, --overwrite replaces it; or give another --out"
            )

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Makes the folder and keeps other processes from writing a run to it. May be entered again within itself.

        A folder that was made for it and is still empty at the end is removed.

        Raises:
            UserError: if another process is writing there, or the folder cannot be made.
        """
        missing = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
        lock = FileLock(self.path / ".lock", is_singleton=True)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(
                f"another process is writing a run to {self.path}: wait until it ends, or give another --out"
            ) from None
        except OSError as error:
            raise cannot_write(self.path, error) from error
        try:
            yield
        finally:
            lock.release()
            with suppress(OSError):  # held by an outer call, or not empty
                if not lock.is_locked:
                    Path(lock.lock_file).unlink()
                for folder in missing:
                    folder.rmdir()

    def clear(self) -> None:
        """Removes an earlier run's files, except the checkpoint, which the new run's first one replaces."""
        own = (self.config, self.metrics, self.table, self.scores, self.tuned, self.tuning, self.report)
        others = (self.scores_on("*"), self.tuned_on("*"), self.tracked_on("*"))
        for file in (*own, *(file for other in others for file in self.path.glob(other.name))):
            file.unlink(missing_ok=True)
