"""The report of a run: one HTML file that needs no network."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from fastssl.data.clips import ClipSet
from fastssl.data.images import Splits
from fastssl.files import atomic_write
from fastssl.train.reproduce import reproducible
from fastssl.train.trained import Trained

_NEEDS = ("matplotlib", "sklearn", "jinja2")


def missing() -> list[str]:
    """The packages of the extra ``report`` that are not installed."""
    return [name for name in _NEEDS if find_spec(name) is None]


def write_report(
    trained: Trained, splits: Splits, path: Path, *, saw: str | None = None, clips: ClipSet | None = None
) -> None:
    """Draws the run: scores, curves, neighbours, map of the features, sample views, settings.

    Args:
        trained: the run; its metrics are read from its folder, and its scores, if it has been scored.
        splits: the images it was trained on, or some of them.
        path: the HTML file to write.
        saw: what it was trained on, if that is not the images of ``splits.train``: "120 clips of 8 frames".
        clips: of videos, if that is what it was trained on.
    Raises:
        ImportError: saying what to install, if the extra ``report`` is missing.
        UserError: if the file system refuses.
    """
    if lacking := missing():
        raise ImportError(f"drawing it needs {', '.join(lacking)}: pip install 'fastssl[report]'")
    from fastssl.report.page import render

    with reproducible(trained.config.seed, trained.config.threads):
        html = render(trained, splits, saw, clips)
    with atomic_write(path) as partial:
        partial.write_text(html, encoding="utf-8")
