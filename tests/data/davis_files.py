"""Small videos with masks, in folders as DAVIS has them: squares that move over a ground that does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from fastssl.data.masks import Mask, write_mask

HEIGHT, WIDTH, SIDE = 48, 64, 16
COLOURS = ((220, 40, 40), (40, 60, 220))


def square(frame: int, number: int) -> tuple[slice, slice]:
    """Where the object ``number``, 1 or 2, is in a frame: the first moves right, the second down."""
    top, left = (6, 4 + 2 * frame) if number == 1 else (4 + frame, 44)
    return slice(top, top + SIDE), slice(left, left + SIDE)


def pixels(frame: int, objects: int, seed: int = 0) -> np.ndarray:
    """(H, W, 3) uint8."""
    rng = np.random.default_rng(seed)
    image = rng.integers(90, 150, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    for number in range(1, objects + 1):
        texture = rng.integers(-30, 30, (SIDE, SIDE, 1))
        image[square(frame, number)] = np.clip(np.array(COLOURS[number - 1]) + texture, 0, 255)
    return image


def numbers(frame: int, objects: int) -> np.ndarray:
    """(H, W) uint8: the mask of a frame."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for number in range(1, objects + 1):
        mask[square(frame, number)] = number
    return mask


def write_davis(root: Path, videos: dict[str, tuple[int, int]], resolution: str = "") -> Path:
    """Videos by name, each of so many frames and objects."""
    for seed, (name, (frames, objects)) in enumerate(videos.items()):
        images, masks = (root / part / resolution / name for part in ("JPEGImages", "Annotations"))
        images.mkdir(parents=True)
        masks.mkdir(parents=True)
        for i in range(frames):
            Image.fromarray(pixels(i, objects, seed)).save(images / f"{i:05d}.jpg", quality=95)
            write_mask(Mask(torch.from_numpy(numbers(i, objects))), masks / f"{i:05d}.png")
    return root
