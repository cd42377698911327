"""Drawing a run's report: what ``pretrain`` and ``report`` share."""

from __future__ import annotations

from fastssl.data.audio import Recordings
from fastssl.data.clips import ClipSet
from fastssl.data.images import Splits
from fastssl.data.media import Data, some_frames
from fastssl.errors import UserError
from fastssl.report import write_report
from fastssl.train.trained import Trained

# Frames of videos that are looked at, and whose features are compared.
_FRAMES = 1000


def draw(trained: Trained, data: Data) -> None:
    """Writes the report of a run on ``data``; of clips it shows single frames.

    Raises:
        ImportError: saying what to install, if the extra ``report`` is missing.
        UserError: if the file system refuses, or it was trained on recordings.
    """
    if isinstance(data, Recordings):
        raise UserError("a report shows images, and this run was trained on recordings: its metrics.csv has the curves")
    splits, clips = (data, None) if isinstance(data, Splits) else (_frames(trained, data), data)
    write_report(trained, splits.readable(), trained.folder.report, clips=clips)


def _frames(trained: Trained, clips: ClipSet) -> Splits:
    config = trained.config
    return Splits(some_frames(clips, config.data, size=config.image_size, count=_FRAMES, seed=config.seed), None)
