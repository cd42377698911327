"""NVIDIA DALI as an engine: views of image files, decoded, cropped and resized ahead of the training step.

DALI decodes each file once and cuts and resizes its crops; ``ops.augment`` takes the other steps, in place of DALI's
own operators: DALI turns the hue in YIQ where torchvision turns it in HSV, and has one order of the four steps of
colour jitter for all samples. So every plan is served, drawn and computed as the native engine does, but for rounding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from types import TracebackType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from fastssl.data import plans
from fastssl.data.encoded import Encoded, decode_whole, read_header
from fastssl.data.files import ANOTHER, MAX_SKIPPED, Files
from fastssl.data.loader import Schedule
from fastssl.data.plans import ViewPlan
from fastssl.data.sources import Listing, Skipped
from fastssl.data.threads import made_ahead
from fastssl.data.views import draw
from fastssl.errors import UserError, needed
from fastssl.ops import ViewParams, augment

# Batches inside DALI at a time: one is made while another is trained on.
_DEPTH = 2
# Batches whose files are read before DALI asks for them.
_READ_AHEAD = 2


def require() -> Any:
    """The module ``nvidia.dali``.

    Raises:
        UserError: saying what to install, where it is missing.
    """
    remedy = "pip install 'fastssl[dali]' (Linux), or take the engine 'native'"
    return needed("nvidia.dali", "the engine 'dali' needs NVIDIA DALI", remedy)


class DaliLoader:
    """Batches of views from image files, by NVIDIA DALI; the contract is that of `fastssl.data.loader.Loader`.

    The order and every parameter of a view are drawn as the native loader draws them: by (seed, epoch, step and rank)
    alone, outside of DALI, which holds no state. A run resumed in mid-epoch therefore sees what an uninterrupted one
    sees, to the bit and without a checkpoint of the pipeline; and for images of the same pixels both engines draw the
    same views from the same seed. Crops are of the file's own pixels, not of a smaller copy.

    JPEG, PNG and WebP are decoded by DALI. Other formats, and what is transparent, has more than 8 bits or a palette,
    are decoded by Pillow and go through the pipeline from there. A file that cannot be read is counted, named in
    ``skipped``, and its place taken by the next readable one of its batch; one that makes DALI's pipeline fail, too:
    the pipeline is built again without it.

    What DALI made goes to torch without a copy (DLPack), and is read by ``ops.augment`` before DALI gets it back; the
    views are new tensors of torch's, which stay as they are.

    With ``device="mixed"`` files are decoded on a GPU and the views are made there: not yet run on a GPU.

    Args:
        files: of a folder, zip or tar, as `fastssl.data.sources.list_images` gives them, or those of a set of images,
            as `fastssl.data.images.files_of` does; closed with the loader.
        plan: how views are made of each image.
        batch_size: images a step and process; what is left of an epoch and fills no batch is left out.
        seed: 0 or more.
        device: "cpu", or "mixed" for torch's current GPU.
        rank: of this process among all, on all machines.
        world: how many processes train together; each sees files of its own.
        threads: that DALI decodes and resizes with; by default as many as torch uses. Any number gives the same bits.
        max_skipped: the share of the files, in [0, 1], above which unreadable ones end the epoch with an error; one is
            always allowed. Files of a set of images are counted with all that the set was read from, as that has it.
        dtype, channels_last: of the views, see `fastssl.data.views.make_views`.

    Raises:
        UserError: if DALI or, for "mixed", a GPU is missing, or a number is out of range.
    """

    def __init__(
        self,
        files: Listing | Files,
        plan: ViewPlan,
        batch_size: int,
        seed: int,
        *,
        device: Literal["cpu", "mixed"] = "cpu",
        rank: int = 0,
        world: int = 1,
        threads: int | None = None,
        max_skipped: float = MAX_SKIPPED,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        require()
        if device not in ("cpu", "mixed"):
            raise UserError(f"the device of DALI must be 'cpu' or 'mixed'; got {device!r}")
        if device == "mixed" and not torch.cuda.is_available():
            raise UserError("the device 'mixed' needs an NVIDIA GPU, and torch finds none here: give 'cpu'")
        self._threads = torch.get_num_threads() if threads is None else threads
        if self._threads < 1:
            raise UserError(f"threads must be 1 or more; got {threads}")
        self.files, self.plan = files if isinstance(files, Files) else Files(files, max_skipped, ANOTHER), plan
        self.dtype, self.channels_last = dtype, channels_last
        self.schedule = Schedule(len(self.files.listing.entries), batch_size, seed, rank, world)
        self._gpu = torch.cuda.current_device() if device == "mixed" else None
        self._pipeline: _Pipeline | None = None
        self._by_pillow: set[int] = set()  # what DALI cannot decode

    @property
    def steps_per_epoch(self) -> int:
        return self.schedule.steps_per_epoch

    @property
    def skipped(self) -> tuple[Skipped, ...]:
        """The files met so far that cannot be read, and why."""
        return self.files.skipped

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[list[Tensor]]:
        """The batches of ``epoch`` from ``start_step`` on, each ``plan.total`` tensors (batch_size, 3, size, size).

        Normalised by the plan's mean and std.

        Raises:
            UserError: if more files cannot be read than are allowed, or a whole batch of them.
        """
        pipeline, self._pipeline = self._pipeline or self.build(), None
        reader = ThreadPoolExecutor(1, "read")
        run = _Run(self, pipeline, reader)
        try:
            prepare = partial(self.prepare, epoch)
            for batch in made_ahead(reader, _READ_AHEAD, prepare, self.schedule.chosen(epoch, start_step)):
                run.feed(batch)
                if len(run.fed) == _DEPTH:
                    yield run.take()
            while run.fed:
                yield run.take()
            self._pipeline = run.pipeline  # one that was left in mid-epoch still holds batches that nobody wants
        finally:
            reader.shutdown(cancel_futures=True)

    def close(self) -> None:
        """Ends DALI's threads, which otherwise end with the loader, and closes the files."""
        self._pipeline = None
        self.files.listing.close()

    def __enter__(self) -> DaliLoader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def build(self) -> _Pipeline:
        """A new pipeline."""
        return _Pipeline(self.plan, self.schedule.batch_size, self._threads, self._gpu)

    def prepare(self, epoch: int, step: int, indices: Tensor) -> _Batch:
        """Reads the files of a batch and draws its views: by its arguments and by which files are readable, alone."""
        chosen = indices.tolist()
        found = [self._read(position) for position in chosen]
        sources = self.files.substitutes(found)
        images = [image for image in (found[j] for j in sources) if image is not None]
        shapes = torch.tensor([(image.height, image.width) for image in images])
        params = draw(self.plan, shapes, self.schedule.generator(epoch, step))
        return _Batch(epoch, step, chosen, [chosen[j] for j in sources], images, params)

    def undecodable(self, batches: Iterable[_Batch]) -> set[int]:
        """The files in ``batches`` that DALI cannot decode: a pipeline that failed does not say on which it did."""
        found, alone, pipeline = set(), plans.eval(1), None
        for batch in batches:
            for position, image in zip(batch.taken, batch.images, strict=True):
                pipeline = pipeline or _Pipeline(alone, 1, 1, self._gpu)
                whole = draw(alone, (image.height, image.width), torch.Generator(), count=1)
                try:
                    pipeline.feed(_Batch(0, 0, [0], [0], [image], whole))
                    pipeline.crops()
                    pipeline.release()
                except Exception:
                    found.add(position)
                    pipeline = None
        return found

    def leave_to_pillow(self, positions: set[int]) -> None:
        """From now on these files are decoded by Pillow."""
        self._by_pillow |= positions

    def _read(self, position: int) -> Encoded | None:
        return self.files.read(position, decode_whole if position in self._by_pillow else read_header)


@dataclass(frozen=True)
class _Batch:
    """Files that were read and what is to become of them.

    Args:
        epoch: it belongs to.
        step: in the epoch.
        chosen: positions of the files that belong into it.
        taken: positions of those that are in it, in place of unreadable ones too.
        images: of the files in ``taken``.
        params: of all views.
    """

    epoch: int
    step: int
    chosen: list[int]
    taken: list[int]
    images: list[Encoded]
    params: ViewParams


class _Run:
    """The batches inside a pipeline, and what to do when it fails on one.

    A pipeline in which an operator failed says so when it is next used, whichever batch it was, by an exception of any
    kind, and is of no more use.
    """

    def __init__(self, loader: DaliLoader, pipeline: _Pipeline, reader: ThreadPoolExecutor) -> None:
        self.loader, self.pipeline, self.reader = loader, pipeline, reader
        self.fed: deque[_Batch] = deque()

    def feed(self, batch: _Batch) -> None:
        self.fed.append(batch)
        try:
            self.pipeline.feed(batch)
        except Exception as error:
            self._rescue(error)

    def take(self) -> list[Tensor]:
        """The views of the batch that was fed first."""
        crops = None
        while crops is None:
            try:
                crops = self.pipeline.crops()
            except Exception as error:
                self._rescue(error)
        loader, params = self.loader, self.fed.popleft().params
        views = finish(crops, params, loader.plan, dtype=loader.dtype, channels_last=loader.channels_last)
        self.pipeline.release()
        return views

    def _rescue(self, error: Exception) -> None:
        """Goes on in a new pipeline, with the files that DALI cannot decode left to Pillow, which says why or can."""
        offenders = self.loader.undecodable(self.fed)
        if not offenders:
            raise error
        self.loader.leave_to_pillow(offenders)
        self.pipeline = self.loader.build()
        for i, batch in enumerate(self.fed):
            if offenders & set(batch.taken):
                again = self.reader.submit(self.loader.prepare, batch.epoch, batch.step, torch.tensor(batch.chosen))
                self.fed[i] = again.result()
            self.pipeline.feed(self.fed[i])


class _Pipeline:
    """DALI's graph: encoded files and crops in, one batch of bytes for each view out.

    Args:
        plan: gives the sizes and the interpolation.
        batch_size: the most images at a time.
        threads: of DALI.
        gpu: number of the GPU to decode and resize on; None for the CPU.
    """

    def __init__(self, plan: ViewPlan, batch_size: int, threads: int, gpu: int | None) -> None:
        require()
        fn, types = import_module("nvidia.dali.fn"), import_module("nvidia.dali.types")
        self._gpu = gpu
        self._pipeline = import_module("nvidia.dali").Pipeline(
            batch_size, threads, device_id=gpu, prefetch_queue_depth=_DEPTH
        )
        how = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}[plan.interpolation]
        with self._pipeline:
            data = fn.external_source(name="data", dtype=types.UINT8, ndim=1)
            images = fn.decoders.image(data, device="cpu" if gpu is None else "mixed", output_type=types.RGB)
            views = []
            for v, size in enumerate(plan.sizes):
                corner, sides = (
                    fn.external_source(name=f"{name}{v}", dtype=types.INT64, ndim=1) for name in ("corner", "sides")
                )
                # Cut before it is resized: resizing a region of interest reads pixels beyond its edges.
                part = fn.slice(images, corner, sides, axes=(0, 1))
                views.append(fn.resize(part, size=(size, size), interp_type=how, antialias=True))
            self._pipeline.set_outputs(*views)
        self._pipeline.build()
        self._fill(plan)

    def _fill(self, plan: ViewPlan) -> None:
        """The first run of a pipeline asks for as many batches as it holds, which an epoch may not have."""
        params = draw(plan, (1, 1), torch.Generator(), count=1)
        for _ in range(_DEPTH):
            self._give(_Batch(0, 0, [0], [0], [Encoded(b"P6 1 1 255\n\0\0\0", 1, 1)], params))
        self._pipeline.schedule_run()
        for _ in range(_DEPTH):
            self.crops()
            self.release()

    def feed(self, batch: _Batch) -> None:
        """Begins on a batch; returns at once."""
        self._give(batch)
        self._pipeline.schedule_run()

    def _give(self, batch: _Batch) -> None:
        self._pipeline.feed_input("data", [np.frombuffer(image.data, np.uint8) for image in batch.images])
        for v, crop in enumerate(batch.params.crop.numpy()):
            self._pipeline.feed_input(f"corner{v}", np.ascontiguousarray(crop[:, :2]))
            self._pipeline.feed_input(f"sides{v}", np.ascontiguousarray(crop[:, 2:]))

    def crops(self) -> list[Tensor]:
        """(N, size, size, 3) uint8 of each view of the batch that was fed first, in DALI's memory until `release`."""
        stream = None if self._gpu is None else torch.cuda.current_stream(self._gpu)
        return [from_dlpack(part.as_tensor()) for part in self._pipeline.share_outputs(cuda_stream=stream)]

    def release(self) -> None:
        """Gives the memory of the last crops back, once what reads them is done."""
        if self._gpu is not None:
            torch.cuda.current_stream(self._gpu).synchronize()
        self._pipeline.release_outputs()


def finish(
    crops: Sequence[Tensor],
    params: ViewParams,
    plan: ViewPlan,
    *,
    dtype: torch.dtype = torch.float32,
    channels_last: bool = False,
) -> list[Tensor]:
    """All steps of a view but for crop and resizing.

    Args:
        crops: V tensors (N, size, size, 3) uint8, resized, of all views of ``plan``.
        params: of V views of N images.
        plan: gives mean and std.
        dtype, channels_last: of the views.
    Returns:
        V tensors (N, 3, size, size).
    """
    views = []
    for v, crop in enumerate(crops):
        own = ViewParams(*(x[v : v + 1].to(crop.device) for x in params))
        size = crop.shape[1]
        own = own._replace(crop=torch.tensor([0, 0, size, size], device=crop.device).expand_as(own.crop))
        views += augment(
            crop.movedim(3, 1), own, size, mean=plan.mean, std=plan.std, dtype=dtype, channels_last=channels_last
        )
    return views
