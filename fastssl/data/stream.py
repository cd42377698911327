"""Image files as they are trained on: read, decoded and augmented on threads while the steps before are computed.

For what does not fit into memory, and for crops of the files' own pixels. The whole of each image is decoded, once for
all its views: a JPEG decoded at half its size (libjpeg's scaled DCT) is done sooner, but its crops are other crops.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from fastssl.data.ahead import AheadLoader, Settings, room
from fastssl.data.decode import UnreadableError, decode_full, sides
from fastssl.data.files import Files
from fastssl.data.plans import ViewPlan
from fastssl.data.sources import Listing
from fastssl.data.views import augmented, draw
from fastssl.errors import UserError
from fastssl.ops import PackedImages, ViewParams
from fastssl.ops._native import on_one_thread

# Pixels that a thread decodes before it makes their views: bounds its memory, and one call serves several small images.
_PIXELS_AT_ONCE = 1 << 21


class StreamLoader(AheadLoader):
    """Batches of views from image files, by Pillow and ``ops.augment``; the contract is `fastssl.data.loader.Loader`'s.

    The order and every parameter of a view are drawn as the other engines draw them: by (seed, epoch, step and rank)
    alone. A run resumed in mid-epoch sees what an uninterrupted one sees, to the bit, and so does one with another
    number of threads. Crops are of the file's own pixels, not of a smaller copy.

    A file that cannot be read is counted, named in ``skipped``, and its place taken by the next readable one of its
    batch.

    ``ahead`` batches are in the making, or made, while one is trained on; the threads give way to those of the training
    step (`fastssl.data.ahead`).

    Args:
        files: of a folder, zip or tar, as `fastssl.data.sources.list_images` gives them, or those of a set of images,
            as `fastssl.data.images.files_of` does; closed with the loader.
        plan: how views are made of each image.
        batch_size: images a step and process; what is left of an epoch and fills no batch is left out.
        seed: 0 or more.
        dtype, channels_last: of the views, see `fastssl.data.views.make_views`.
        settings: see `fastssl.data.ahead.Settings`.

    Raises:
        UserError: if the files can only be read forwards, as those of a compressed tar, or a number is out of range.
    """

    def __init__(
        self,
        files: Listing | Files,
        plan: ViewPlan,
        batch_size: int,
        seed: int,
        *,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        **settings: Unpack[Settings],
    ) -> None:
        listing = files.listing if isinstance(files, Files) else files
        if listing.forwards_only:
            raise UserError(
                "a compressed tar can only be read forwards, and each epoch has an order of its own: unpack it, or "
                "pack it again as a zip or a plain tar"
            )
        super().__init__(files, batch_size, seed, **settings)
        self.plan, self.dtype, self.channels_last = plan, dtype, channels_last
        self._sides: dict[int, tuple[int, int]] = {}  # of images that are of others than their headers tell

    def make(self, workers: ThreadPoolExecutor, epoch: int, step: int, chosen: list[int]) -> list[Tensor]:
        """``plan.total`` views (batch_size, 3, size, size), normalised by the plan's mean and std."""
        while True:
            found = list(workers.map(self._open, chosen))
            images = self._files.filled(found)
            shapes = torch.tensor([(image.height, image.width) for image in images])
            params = draw(self.plan, shapes, self.schedule.generator(epoch, step))
            shapes_of_views = [(len(images), 3, size, size) for size in self.plan.sizes]
            views = [room(*one, dtype=self.dtype, channels_last=self.channels_last) for one in shapes_of_views]
            if all(list(workers.map(partial(self._augment, images, params, views), _parts(images)))):
                return views

    def _open(self, position: int) -> _Image | None:
        def use(data: bytes) -> _Image:
            return _Image(position, data, *(self._sides.get(position) or sides(data)))

        return self._files.read(position, use)

    def _augment(self, images: Sequence[_Image], params: ViewParams, views: Sequence[Tensor], part: slice) -> bool:
        """Makes the views of a part of the images; False if one of them is not what it seemed, which is then known."""
        decoded = [self._decode(image) for image in images[part]]
        pixels = [image for image in decoded if image is not None]
        if len(pixels) < len(decoded):
            return False
        packed = _pack(pixels)
        own = ViewParams(*(x[:, part] for x in params))
        with on_one_thread():
            made = augmented(packed, own, self.plan, dtype=self.dtype, channels_last=self.channels_last)
        for view, some in zip(views, made, strict=True):
            _array(view)[part] = _array(some)  # on this thread alone; torch would share it out among others
        return True

    def _decode(self, image: _Image) -> np.ndarray | None:
        try:
            pixels = decode_full(image.data)
        except UnreadableError as error:
            self._files.give_up(image.position, str(error))
            return None
        if pixels.shape[:2] == (image.height, image.width):
            return pixels
        self._sides[image.position] = (pixels.shape[0], pixels.shape[1])
        return None


@dataclass(frozen=True)
class _Image:
    """A file that was read.

    Args:
        position: of the file among all.
        data: its bytes.
        height, width: of the upright image, in pixels.
    """

    position: int
    data: bytes
    height: int
    width: int


def _array(view: Tensor) -> np.ndarray:
    """The same memory; of bfloat16, which NumPy has not, as integers."""
    array: np.ndarray = (view.view(torch.int16) if view.dtype == torch.bfloat16 else view).numpy()
    return array


def _parts(images: Sequence[_Image]) -> list[slice]:
    """Consecutive images of together so many pixels as a thread takes at once, or one that has more."""
    parts, start, pixels = [], 0, 0
    for i, image in enumerate(images):
        if i > start and pixels + image.height * image.width > _PIXELS_AT_ONCE:
            parts.append(slice(start, i))
            start, pixels = i, 0
        pixels += image.height * image.width
    return [*parts, slice(start, len(images))]


def _pack(images: Sequence[np.ndarray]) -> PackedImages:
    """(H, W, 3) uint8 images one after the other in one buffer."""
    shapes = torch.tensor([image.shape[:2] for image in images])
    ends = (3 * shapes.prod(1)).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    pixels = torch.from_numpy(np.concatenate([image.reshape(-1) for image in images]))
    return PackedImages(pixels, starts, *shapes.unbind(1))
