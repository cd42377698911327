"""``fastssl colorize``: a photo with the colours that a run of colorization gives it."""

from __future__ import annotations

from pathlib import Path

from fastssl.cli import console
from fastssl.cli.parser import Parser
from fastssl.cli.photos import check_ending, open_run_of, read_photo, write_photo
from fastssl.methods.colorization import Colorization
from fastssl.ops import rgb_to_lab
from fastssl.train.reproduce import reproducible, resolve_device

DESCRIPTION = """\
Colorize PHOTO with a run of `fastssl pretrain colorization`. If it has colours of its own, they are not looked at.

Colours are predicted with the short side of the photo as long as the run's images, and laid upon the photo in its own
size: its lightness stays as it is.
"""

EXAMPLES = """\
  fastssl pretrain colorization --data photos --image_size 128 --out runs/colors
  fastssl colorize grandmother.jpg --checkpoint runs/colors --out grandmother-in-colour.png
"""


def run(words: list[str]) -> int:
    """The command. Raises UserError for whatever cannot be used."""
    parser = Parser("colorize PHOTO --checkpoint RUN --out FILE", DESCRIPTION, EXAMPLES)
    parser.add_argument("photo", metavar="PHOTO", type=str, help="an image file")
    parser.add_argument("--checkpoint", type=str, required=True, help="folder of a run of colorization")
    parser.add_argument("--out", type=str, required=True, help="file to write: .png, .jpg or .webp")
    given = parser.parse(words)
    out = Path(given.out)
    check_ending(out)
    photo = read_photo(Path(given.photo))
    trained, method = open_run_of(Colorization, Path(given.checkpoint), "colorize")
    config = trained.config
    height, width = photo.shape[2:]
    fill = getattr(trained.encoder, "patch_size", 1)
    with reproducible(config.seed, config.threads), console.busy("colorizing"):
        device = resolve_device(config.device)
        lightness = rgb_to_lab(photo)[:, :1].to(device)
        colored = method.to(device).colorize(lightness, shown_size(height, width, config.image_size, fill))
    write_photo(colored.cpu(), out)
    print(f"{width} x {height} pixels in colour: {out}")
    return 0


def shown_size(height: int, width: int, short: int, fill: int = 1) -> tuple[int, int]:
    """Sides of a photo whose short one gets ``short`` pixels; patches of ``fill`` pixels fill the long one."""
    least = min(height, width)

    def shown(side: int) -> int:
        return short if side == least else max(short, fill * round(side * short / least / fill))

    return shown(height), shown(width)
