"""Label propagation: the masks of a first frame carried through a video by the similarity of features.

The evaluation of DINO (arXiv:2104.14294, appendix) and CRW (arXiv:2006.14613) on DAVIS, as the official semi-supervised
task counts it: J and F of each object, averaged over its frames but the first and the last, then over all objects.
Beside an encoder stand the same one untrained, and the first mask left where it is: both know nothing of the video.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastssl.data.davis import Davis, Sequence
from fastssl.data.decode import UnreadableError
from fastssl.data.masks import VOID
from fastssl.data.reading import quote
from fastssl.data.sources import Skipped
from fastssl.errors import UserError
from fastssl.eval.features import evaluating
from fastssl.eval.protocol import RANDOM, TRAINED
from fastssl.eval.segmentation import boundary_accuracy, region_similarity
from fastssl.methods import Method
from fastssl.ops import propagate_labels

UNMOVED = "first mask, unmoved"

Features = Callable[[Tensor], Tensor]
"""(1, 3, H, W) float32, RGB in [0, 1], to (1, D, h, w): `fastssl.methods.Method.embed`."""

Watcher = Callable[[str, Tensor, Tensor], None]
"""Told a video's name, its frames (T, H, W, 3) uint8 and their masks (T, H, W) uint8."""


@dataclass(frozen=True)
class TrackConfig:
    """How labels are carried from frame to frame.

    Attributes:
        context: labelled frames that a frame is compared with: the first, and so many before it. DINO's 7.
        k: positions of all these whose labels a position takes. DINO's 5.
        radius: how far away they may lie in the map, in positions; null for anywhere. DINO's 12.
        temperature: their weights are exp(cosine / temperature). DINO's 0.1.
        side: frames of a longer short side are reduced to this before the network sees them, in pixels.
    """

    context: int = 7
    k: int = 5
    radius: int | None = 12
    temperature: float = 0.1
    side: int = 480

    def __post_init__(self) -> None:
        for name, least in (("context", 0), ("k", 1), ("radius", 0), ("side", 8)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"the {name} of tracking must be {least} or more; got {value}")
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise UserError(f"the temperature of tracking must be a finite number above 0; got {self.temperature}")


@dataclass(frozen=True)
class ObjectScore:
    """J and F of one object, each the mean over its frames, in [0, 1]."""

    sequence: str
    object: int
    j: float
    f: float


@dataclass(frozen=True)
class TrackRow:
    """The scores of one way to track.

    Attributes:
        features: "trained", "random initialisation" or "first mask, unmoved".
        objects: of all sequences.
    """

    features: str
    objects: tuple[ObjectScore, ...]

    @property
    def j(self) -> float:
        """The mean region similarity of the objects."""
        return sum(item.j for item in self.objects) / len(self.objects)

    @property
    def f(self) -> float:
        """Their mean boundary accuracy."""
        return sum(item.f for item in self.objects) / len(self.objects)

    @property
    def jf(self) -> float:
        """The mean of both."""
        return (self.j + self.f) / 2


@dataclass(frozen=True)
class TrackScores:
    """The table of scores.

    Attributes:
        rows: trained, random initialisation, the first mask unmoved.
        config: how labels were carried.
        sequences, frames: how many of them were scored; of the frames those with a mask, less first and last.
        skipped: the sequences that could not be, and why.
    """

    rows: tuple[TrackRow, ...]
    config: TrackConfig
    sequences: int
    frames: int
    skipped: tuple[Skipped, ...] = ()

    def row(self, features: str) -> TrackRow:
        """The row of that name. Raises KeyError, if there is none."""
        for row in self.rows:
            if row.features == features:
                return row
        raise KeyError(features)

    def to_dict(self) -> dict[str, Any]:
        """As plain lists, dicts, strings and numbers, for JSON."""
        rows = [{**asdict(row), "j": row.j, "f": row.f, "jf": row.jf} for row in self.rows]
        return asdict(self) | {"rows": rows, "skipped": [asdict(item) for item in self.skipped]}


@torch.no_grad()
def track(
    frames: Iterable[Tensor],
    first: Tensor,
    features: Features,
    config: TrackConfig,
    *,
    multiple: int = 1,
    device: torch.device | str = "cpu",
) -> Iterator[Tensor]:
    """Carries the labels of the first frame on, frame by frame.

    Args:
        frames: (H, W, 3) uint8, RGB, in their order, the first one first.
        first: (H, W) int64 in [0, C): the class of each of its pixels, 0 for none.
        features: of a frame; run on ``device``.
        config: how labels are carried.
        multiple: of what number of pixels the sides of what ``features`` sees are.
        device: where features are computed and compared.
    Yields:
        (H, W) int64 for each frame, on the CPU; for the first ``first`` itself.
    """
    size = first.shape[0], first.shape[1]
    seen = _seen_size(size, config.side, multiple)
    known: deque[tuple[Tensor, Tensor]] = deque(maxlen=config.context)
    begin: tuple[Tensor, Tensor] | None = None
    for frame in frames:
        found = features(_shown(frame, seen, device))[0]
        if begin is None:
            classes = F.one_hot(first).movedim(2, 0).float().to(device)
            begin = found, F.adaptive_avg_pool2d(classes, (found.shape[1], found.shape[2]))
            yield first
            continue
        context, labels = (torch.stack(x) for x in zip(begin, *known, strict=True))
        k = min(config.k, context.shape[0] * context[0, 0].numel())
        carried = propagate_labels(
            found, context, labels.float(), radius=config.radius, k=k, temperature=config.temperature
        )
        known.append((found, carried))
        yield F.interpolate(carried[None].float(), size=size, mode="bilinear")[0].argmax(0).cpu()


def multiple_of(method: Method) -> int:
    """What number of pixels the sides of an image must be a multiple of: the patch of a Vision Transformer, else 1."""
    return int(getattr(method.encoder, "patch_size", 1))


def evaluate_tracking(
    trained: Method,
    untrained: Method,
    davis: Davis,
    *,
    config: TrackConfig | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
    watch: Watcher = lambda name, frames, masks: None,
) -> TrackScores:
    """Scores of ``trained``, ``untrained`` and of the first mask left where it is, under one protocol.

    Args:
        trained, untrained: whose `Method.embed` tells what is alike; moved to ``device``.
        davis: the sequences; those that cannot be read are left out and named.
        config: defaults to ``TrackConfig()``.
        device: where features are computed and compared.
        progress: called with (sequences done, sequences in all).
        watch: called with the name of each sequence, its frames and the masks that ``trained`` gave them.
    Raises:
        UserError: if none of the sequences can be scored.
    """
    config = config or TrackConfig()
    ways: Mapping[str, Method | None] = {TRAINED: trained, RANDOM: untrained, UNMOVED: None}
    scores: dict[str, list[ObjectScore]] = {name: [] for name in ways}
    skipped = list(davis.skipped)
    count = scored = 0
    for done, sequence in enumerate(davis.sequences, start=1):
        try:
            frames, truth, at = _opened(sequence)
        except UnreadableError as error:
            skipped.append(Skipped(sequence.name, str(error)))
        else:
            for name, method in ways.items():
                masks = _tracked(frames, truth[0], method, config, device)
                scores[name] += score(sequence.name, masks[at], truth)
                if name == TRAINED:
                    watch(sequence.name, frames, masks)
            count, scored = count + 1, scored + len(at) - 2
        progress(done, len(davis.sequences))
    if not count:
        raise UserError(f"none of the {len(davis.sequences)} sequences can be scored ({quote(skipped)})")
    rows = tuple(TrackRow(name, tuple(objects)) for name, objects in scores.items())
    return TrackScores(rows, config, count, scored, tuple(skipped))


def score(name: str, masks: Tensor, truth: Tensor) -> list[ObjectScore]:
    """J and F of the objects of a sequence, whose number is that of the highest in the first frame.

    Args:
        name: of the sequence.
        masks: (T, H, W) uint8, T >= 3.
        truth: (T, H, W) uint8, in which ``VOID`` is left open.
    """
    void = truth[1:-1] == VOID
    highest = int(truth[0].where(truth[0] != VOID, 0).max())
    found = []
    for number in range(1, highest + 1):
        own, true = masks[1:-1] == number, truth[1:-1] == number
        j, f = (float(measure(own, true, void).mean()) for measure in (region_similarity, boundary_accuracy))
        found.append(ObjectScore(name, number, j, f))
    return found


def _opened(sequence: Sequence) -> tuple[Tensor, Tensor, list[int]]:
    """(T, H, W, 3) uint8 frames, and the masks (M, H, W) uint8 of those at the positions that come last."""
    at, truth = sequence.truth()
    if len(at) < 3:
        raise UnreadableError(f"{len(at)} of its frames have a mask, and first and last are not scored")
    if not ((truth[0] > 0) & (truth[0] != VOID)).any():
        raise UnreadableError("no object in its first mask")
    frames = sequence.video.read(range(len(sequence.video)))
    if frames.shape[1:3] != truth.shape[1:]:
        raise UnreadableError(f"frames of {frames.shape[1:3]} pixels and masks of {truth.shape[1:]}")
    return frames, truth, at


def _tracked(
    frames: Tensor, first: Tensor, method: Method | None, config: TrackConfig, device: torch.device | str
) -> Tensor:
    """(T, H, W) uint8 masks of (T, H, W, 3) frames by the first one; without a method that one itself."""
    first = first.where(first != VOID, 0)
    if method is None:
        return first.expand(len(frames), -1, -1)
    with evaluating(method.to(device)):
        masks = track(frames, first.long(), method.embed, config, multiple=multiple_of(method), device=device)
        return torch.stack([mask.byte() for mask in masks])


def _seen_size(size: tuple[int, int], side: int, multiple: int) -> tuple[int, int]:
    """Height and width of what a network sees of frames of ``size``."""
    shrink = min(1.0, side / min(size))
    height, width = (max(1, round(length * shrink / multiple)) * multiple for length in size)
    return height, width


def _shown(frame: Tensor, size: tuple[int, int], device: torch.device | str) -> Tensor:
    """A (H, W, 3) uint8 frame as (1, 3, height, width) in [0, 1]."""
    image = frame.to(device).movedim(2, 0)[None].float() / 255
    if tuple(image.shape[2:]) == size:
        return image
    return F.interpolate(image, size=size, mode="bilinear", antialias=True).clamp(0, 1)
