"""Drawing a run's report: what ``pretrain`` and ``report`` share."""

from __future__ import annotations

from fastssl.cli import console
from fastssl.data.audio import Recordings
from fastssl.data.clips import ClipSet
from fastssl.data.files import NOT_SHOWN
from fastssl.data.images import Splits
from fastssl.data.media import Data, some_frames
from fastssl.data.reading import counted
from fastssl.data.webdataset import InShards, some_samples
from fastssl.errors import UserError
from fastssl.report import write_report
from fastssl.train.trained import Trained

# Frames of videos, or samples of shards, that are looked at and whose features are compared.
_SHOWN = 2000


def draw(trained: Trained, data: Data) -> None:
    """Writes the report of a run on ``data``; of clips it shows single frames, of shards some of the images.

    Raises:
        ImportError: saying what to install, if the extra ``report`` is missing.
        UserError: if the file system refuses, or it was trained on recordings.
    """
    if isinstance(data, Recordings):
        raise UserError("a report shows images, and this run was trained on recordings: its metrics.csv has the curves")
    saw, clips = None, None
    if isinstance(data, ClipSet):
        config, clips = trained.config, data
        saw = f"{counted(len(data), 'clip')} of {counted(config.media.frames, 'frame')}"
        data = Splits(some_frames(data, config.data, size=config.image_size, count=_SHOWN, seed=config.seed), None)
    elif isinstance(data.train.images, InShards):
        saw = counted(len(data.train), "image")
        data = Splits(some_samples(data.train, count=_SHOWN, seed=trained.config.seed, instead=NOT_SHOWN), None)
    with console.reading(trained.config.data) as progress:
        data = data.readable(progress)
    write_report(trained, data, trained.folder.report, saw=saw, clips=clips)
