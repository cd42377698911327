"""``fastssl track``: objects marked in the first frame of a video, followed through all of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import tee
from pathlib import Path

import torch
from torch import Tensor

from fastssl.cli import console
from fastssl.cli.parser import Parser
from fastssl.data import video
from fastssl.data.decode import UnreadableError
from fastssl.data.masks import Mask, read_mask, write_mask
from fastssl.data.video import FrameFolder, Video
from fastssl.errors import UserError
from fastssl.eval.features import evaluating
from fastssl.eval.tracking import TrackConfig, multiple_of, track
from fastssl.files import atomic_write
from fastssl.report.overlay import check_movie, overlaid, write_movie
from fastssl.train.reproduce import reproducible, resolve_device
from fastssl.train.trained import Trained, open_run

DESCRIPTION = """\
Follow objects through a video by what a run's network finds alike. VIDEO is a video file or a folder of frames.
FIRST.png marks the objects of its first frame, in the frame's own size: a number of the palette, a grey level or a
colour each, black for none.

OUT.gif or OUT.mp4 shows the masks over the frames. The masks themselves are written to the folder OUT-masks, a PNG
each, with the numbers and the palette of FIRST.png.

Any run on images or videos will do; video_colorization is made for it.
"""

EXAMPLES = """\
  fastssl track dog.mp4 --mask dog.png --checkpoint runs/video_colorization-davis --out tracked.gif
  fastssl track frames/dog --mask dog.png --checkpoint runs/colors --out tracked.mp4 --track.radius 6 --track.context 4
"""


def run(words: list[str]) -> int:
    """The command. Raises UserError for whatever cannot be used."""
    given = _parser().parse(words)
    config = TrackConfig(**given.track.as_dict())
    out = Path(given.out)
    check_movie(out)
    trained = open_run(Path(given.checkpoint))
    film = video.open_one(given.video)
    folder = out.with_name(f"{out.stem}-masks")
    try:
        mask = _first_mask(Path(given.mask), film, given.video)
        with reproducible(trained.config.seed, trained.config.threads), console.busy(f"tracking {len(film)} frames"):
            write_movie(_followed(trained, film, mask, config, folder), out, video.frame_rate(film))
    except UnreadableError as error:
        raise UserError(f"{given.video!r} cannot be read as a video: {error}") from error
    count = len(mask.objects)
    print(f"{count} object{'s' if count != 1 else ''} in {len(film)} frames: {out}\nmasks: {folder}")
    return 0


def _parser() -> Parser:
    parser = Parser("track VIDEO --mask FIRST.png --checkpoint RUN --out OUT.gif|OUT.mp4", DESCRIPTION, EXAMPLES)
    parser.add_argument("video", metavar="VIDEO", type=str, help="a video file, or a folder of frames")
    parser.add_argument("--mask", type=str, required=True, help="the objects in the first frame, an image of its size")
    parser.add_argument("--checkpoint", type=str, required=True, help="folder of a run")
    parser.add_argument("--out", type=str, required=True, help="file to write; its ending chooses the format")
    parser.add_class_arguments(TrackConfig, "track")
    return parser


def _first_mask(path: Path, film: Video, source: str) -> Mask:
    """The mask, which must fit the first frame."""
    try:
        mask = read_mask(path)
    except UnreadableError as error:
        raise UserError(f"{path} cannot be read as a mask: {error}") from error
    frame = film.read([0])[0]
    if mask.values.shape != frame.shape[:2]:
        (height, width), (rows, columns) = frame.shape[:2], mask.values.shape
        raise UserError(
            f"the mask {path} has {columns} x {rows} pixels, and the frames of {source} {width} x {height}: give a "
            "mask of the first frame's size"
        )
    if not mask.objects:
        raise UserError(f"the mask {path} marks no object: all of it is black, or void")
    return mask


def _followed(trained: Trained, film: Video, first: Mask, config: TrackConfig, folder: Path) -> Iterator[Tensor]:
    """The frames with their masks drawn over them; each mask is written as it is found."""
    numbers = torch.tensor([0, *first.objects], dtype=torch.uint8)
    classes = (first.values == numbers[:, None, None]).byte().argmax(0)  # of what is void 0, as all are unequal
    device = resolve_device(trained.config.device)
    method = trained.method.to(device)
    frames, shown = tee(video.frames_of(film))
    with evaluating(method):
        masks = track(frames, classes, method.embed, config, multiple=multiple_of(method), device=device)
        for i, (frame, mask) in enumerate(zip(shown, masks, strict=True)):
            found = Mask(numbers[mask], first.palette)
            with atomic_write(folder / f"{_name(film, i)}.png") as partial:
                write_mask(found, partial)
            yield overlaid(frame, found.values, found.palette)


def _name(film: Video, frame: int) -> str:
    """As the file of the frame is called; or its number."""
    return Path(film.entries[frame].name).stem if isinstance(film, FrameFolder) else f"{frame:05d}"
