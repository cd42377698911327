"""``fastssl inpaint``: a photo with a hole filled by what a run of inpainting paints there."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from fastssl.cli import console
from fastssl.cli.parser import Parser
from fastssl.cli.photos import check_ending, open_run_of, read_photo, write_photo
from fastssl.errors import UserError
from fastssl.methods.inpainting import Inpainting
from fastssl.train.reproduce import reproducible, resolve_device

DESCRIPTION = """\
Fill a hole in PHOTO with a run of `fastssl pretrain inpainting`: what is white in MASK, an image of the photo's size,
or without one the middle of the photo.

The run sees a part of the photo around the hole, twice as wide where the photo has that much, at the size of its
images: the smaller the hole, the finer what is painted. All else of the photo stays as it is.
"""

EXAMPLES = """\
  fastssl pretrain inpainting --data photos --image_size 128 --out runs/holes
  fastssl inpaint beach.jpg --checkpoint runs/holes --mask tourist.png --out beach-empty.png
  fastssl inpaint beach.jpg --checkpoint runs/holes --out beach-middle.png
"""


def run(words: list[str]) -> int:
    """The command. Raises UserError for whatever cannot be used."""
    parser = Parser("inpaint PHOTO --checkpoint RUN [--mask MASK] --out FILE", DESCRIPTION, EXAMPLES)
    parser.add_argument("photo", metavar="PHOTO", type=str, help="an image file")
    parser.add_argument("--checkpoint", type=str, required=True, help="folder of a run of inpainting")
    parser.add_argument("--mask", type=str | None, help="an image of the same size, white where PHOTO is to be filled")
    parser.add_argument("--out", type=str, required=True, help="file to write: .png, .jpg or .webp")
    given = parser.parse(words)
    out = Path(given.out)
    check_ending(out)
    photo = read_photo(Path(given.photo))
    mask = None if given.mask is None else read_mask(Path(given.mask), photo)
    trained, method = open_run_of(Inpainting, Path(given.checkpoint), "inpaint")
    if mask is not None and method.config.hole == "center":
        raise UserError(
            f"{given.checkpoint} knows holes in the center alone: inpaint without --mask, or train a run with "
            "--inpainting.hole region"
        )
    with reproducible(trained.config.seed, trained.config.threads), console.busy("painting"):
        device = resolve_device(trained.config.device)
        filled = method.to(device).fill_photo(photo.to(device), None if mask is None else mask.to(device))
    write_photo(filled.cpu(), out)
    print(f"{photo.shape[3]} x {photo.shape[2]} pixels, filled: {out}")
    return 0


def read_mask(path: Path, photo: Tensor) -> Tensor:
    """(1, 1, H, W) bool, True where an image is nearer to white than to black.

    Raises:
        UserError: if it is of another size than (1, 3, H, W) ``photo``, or hides nothing or everything.
    """
    mask = read_photo(path).mean(dim=1, keepdim=True) >= 0.5
    if mask.shape[2:] != photo.shape[2:]:
        sizes = [f"{x.shape[3]} x {x.shape[2]}" for x in (mask, photo)]
        raise UserError(f"the mask {path} has {sizes[0]} pixels and the photo {sizes[1]}: give one of the same size")
    if bool(mask.all()) or not bool(mask.any()):
        what = "everything" if bool(mask.any()) else "nothing"
        raise UserError(f"the mask {path} hides {what}: what is to be filled is white, and all else black")
    return mask
