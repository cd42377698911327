"""Builds the embedded ``clipart`` set from the files of Debian's package ``openclipart-png``.

    apt-get download openclipart-png && dpkg -x openclipart-png_*.deb unpacked
    python -m fastssl.data.build_clipart unpacked/usr/share/openclipart/png fastssl/data/clipart.zip

Each drawing is put on white, cut to what is drawn, padded to a square and resized. Duplicates, exact and near, mirrored
or not, are removed before anything is split; where a drawing is filed under two classes, every copy of it is. What is
left is capped and split, seeded. The same files and the same Pillow give the same bytes.
"""

from __future__ import annotations

import argparse
import io
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageChops, UnidentifiedImageError
from torch import Tensor

from fastssl.data.decode import on_white
from fastssl.data.images import TEST_SHARE, stratified_split
from fastssl.files import atomic_write

SIZE = 64
QUALITY = 85
MOST_PER_CLASS = 300
SEED = 0

# Folders of the package that make up a class; "dir/" takes all below it, "dir" only the files right in it.
CLASSES: dict[str, tuple[str, ...]] = {
    "animals": ("animals/",),
    "arrows": ("shapes/arrows/",),
    "cards": tuple(f"recreation/games/cards/{style}/" for style in ("bordered", "ornamental", "simple", "white")),
    "flags": ("signs_and_symbols/flags/",),
    "food": ("food/",),
    "glossy_icons": tuple(f"computer/icons/lemon-theme/{part}/" for part in ("actions", "devices", "filesystems")),
    "line_icons": ("computer/icons/flat-theme/action/",),
    "music": ("recreation/music/",),
    "patterns": ("special/patterns/",),
    "people": ("people", "people/stickmen/"),
    "pictograms": ("transportation/aiga-symbols/",),
    "plants": ("plants/",),
    "tools": ("tools",),
    "vehicles": ("transportation", "transportation/vehicles/", "transportation/boating"),
}

# Files that are not what their folder says, whose parts are missing, that show real people or nudity: prefixes.
LEFT_OUT = (
    "signs_and_symbols/flags/semaphore/",
    *(
        f"animals/{name}"
        for name in ("birds/duck_yellow_ii", "lucchetto", "mammals/housecats/cat_scrathing", "three_eyes")
    ),
    *(f"plants/{name}" for name in ("cannabis", "human_humain", "trees/bowsaw", "trees/bypasspruner")),
    *(f"people/{name}" for name in ("a_happy_boy", "a_youngster", "adult_astrid", "einstein", "female_rollandin")),
    *(f"people/{name}" for name in ("fingerprint", "grandpa", "icons_lumen", "john_coltrane", "martin_luther_king")),
    *(f"people/{name}" for name in ("safety_pin", "samoa_tatoo", "sexy_lady", "stripper", "stylized_yoga", "van_gogh")),
    *(f"transportation/boating/{name}" for name in ("boating_rules", "knot_", "sailing_")),
    *(f"transportation/vehicles/{name}" for name in ("crossroads", "curve_ahead", "cycle_route", "lighthouse")),
    *(f"transportation/{name}" for name in ("anchor", "lighthouse", "little_tan_suitcase", "street_sign")),
)

# Two drawings are near duplicates if the ink of their thumbnails differs by less than this share of the heavier one's.
_NEAR = 0.2
_THUMBNAIL = 16
# A drawing whose thumbnail has less ink than this (root mean square) cannot be seen.
_FAINT = 0.05
# A pixel belongs to the drawing if a channel is this far from white.
_INK = 8
_MARGIN = 0.03
_LARGEST = 2048


@dataclass(frozen=True)
class Drawing:
    """One drawing: its path inside the package, its class, and its pixels (SIZE, SIZE, 3) uint8."""

    name: str
    label: str
    pixels: np.ndarray


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads the folder given first, writes the zip given second."""
    parser = argparse.ArgumentParser(description="Build the embedded clipart set.")
    parser.add_argument("folder", type=Path, help="usr/share/openclipart/png of Debian's package openclipart-png")
    parser.add_argument("out", type=Path, help="the zip to write")
    options = parser.parse_args(arguments)
    found = read(options.folder)
    unique = without_duplicates(found)
    chosen = capped(unique)
    write(chosen, options.out)
    print(f"{len(found)} drawings, {len(unique)} without duplicates, {len(chosen)} chosen: {options.out}")


def read(folder: Path) -> list[Drawing]:
    """Every drawing of a class that can be read and is not blank, sorted by name."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    labelled = [(name, label) for name in names if (label := _class_of(name))]
    with ThreadPoolExecutor() as pool:
        pixels = pool.map(lambda item: _read_one(folder / item[0]), labelled)
    return [Drawing(*item, drawn) for item, drawn in zip(labelled, pixels, strict=True) if drawn is not None]


def without_duplicates(drawings: list[Drawing]) -> list[Drawing]:
    """One drawing, the first by name, of each group of near duplicates, and none of a group of several classes."""
    group = list(range(len(drawings)))
    for i, near in enumerate(_near_duplicates(drawings)):
        for j in near:
            group = [group[i] if g == group[j] else g for g in group]
    members: dict[int, list[Drawing]] = {}
    for drawing, g in zip(drawings, group, strict=True):
        members.setdefault(g, []).append(drawing)
    kept = [same[0] for same in members.values() if len({drawing.label for drawing in same}) == 1]
    return sorted(kept, key=lambda drawing: drawing.name)


def capped(drawings: list[Drawing]) -> list[Drawing]:
    """At most ``MOST_PER_CLASS`` drawings of each class, drawn with ``SEED``."""
    order = torch.randperm(len(drawings), generator=torch.Generator().manual_seed(SEED)).tolist()
    taken = dict.fromkeys(CLASSES, 0)
    kept = []
    for i in order:
        taken[drawings[i].label] += 1
        if taken[drawings[i].label] <= MOST_PER_CLASS:
            kept.append(i)
    return [drawings[i] for i in sorted(kept)]


def write(drawings: list[Drawing], out: Path) -> None:
    """Splits the drawings and writes ``train/<class>/<name>.webp``, ``test/...`` and ``README.txt`` as a zip."""
    labels = torch.tensor([list(CLASSES).index(drawing.label) for drawing in drawings])
    _, held_out = stratified_split(labels, TEST_SHARE, SEED)
    test = set(held_out.tolist())
    files = {}
    for i, drawing in enumerate(drawings):
        stem = drawing.name.removesuffix(".png").replace("/", "-")
        files[f"{'test' if i in test else 'train'}/{drawing.label}/{stem}.webp"] = _encode(drawing.pixels)
    files["README.txt"] = _readme(len(drawings), len(test)).encode()
    with atomic_write(out) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name in sorted(files):
            # A fixed date and mode, and no compression that could differ: the bytes depend on the drawings alone.
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.external_attr = 0o644 << 16
            archive.writestr(info, files[name])


def _class_of(name: str) -> str | None:
    if name.startswith(LEFT_OUT):
        return None
    folder = name.rpartition("/")[0]
    for label, folders in CLASSES.items():
        if any(name.startswith(wanted) if wanted.endswith("/") else folder == wanted for wanted in folders):
            return label
    return None


def _read_one(path: Path) -> np.ndarray | None:
    """The drawing, cut to what is drawn, on a white square; None if it cannot be read or seen."""
    try:
        with Image.open(path) as image:
            image.thumbnail((_LARGEST, _LARGEST))
            drawing = on_white(image)
    except (UnidentifiedImageError, OSError, Image.DecompressionBombError):
        return None
    ink = ImageChops.invert(drawing).point(lambda value: 255 * (value > _INK))
    box = ink.getbbox()
    if box is None:
        return None
    drawing = drawing.crop(box)
    side = round(max(drawing.size) * (1 + 2 * _MARGIN))
    square = Image.new("RGB", (side, side), "white")
    square.paste(drawing, ((side - drawing.width) // 2, (side - drawing.height) // 2))
    pixels = np.asarray(square.resize((SIZE, SIZE), Image.Resampling.LANCZOS))
    return pixels if _thumbnail(pixels).square().mean().sqrt() >= _FAINT else None


def _near_duplicates(drawings: list[Drawing]) -> list[list[int]]:
    """For each drawing the later ones whose ink, as it is or mirrored, is nearly its own."""
    ink = torch.stack([_thumbnail(drawing.pixels) for drawing in drawings])
    plain, mirrored = ink.flatten(1), ink.flip(2).flatten(1)
    strength = plain.norm(dim=1)
    distance = torch.minimum(torch.cdist(plain, plain), torch.cdist(plain, mirrored))
    near = distance < _NEAR * torch.maximum(strength[:, None], strength)
    return [row.nonzero()[:, 0].tolist() for row in near.triu(1)]


def _thumbnail(pixels: np.ndarray) -> Tensor:
    """(_THUMBNAIL, _THUMBNAIL, 3) ink in [0, 1]: how far from white the drawing is."""
    cell = SIZE // _THUMBNAIL
    ink = 1 - torch.from_numpy(pixels.astype(np.float32)) / 255
    return ink.view(_THUMBNAIL, cell, _THUMBNAIL, cell, 3).mean((1, 3))


def _encode(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", quality=QUALITY, method=6)
    return buffer.getvalue()


def _readme(count: int, test: int) -> str:
    return f"""clipart: {count} drawings of {len(CLASSES)} classes, {SIZE} x {SIZE} pixels,
{count - test} to train on and {test} to test on.

Source: the Debian package openclipart-png (https://packages.debian.org/openclipart-png), which holds drawings of the
Open Clip Art Library (http://www.openclipart.org). Each file is named after its path in the package.

Changed: put on white, cut to what is drawn, padded to a square, resized, saved as WebP; duplicates removed; split.

Licence: public domain. The package's copyright file says "creative commons Public Domain Dedication": the authors
dedicate whatever copyright they hold in the work to the public domain; once there, it "may be freely reproduced,
distributed, transmitted, used, modified, built upon, or otherwise exploited by anyone for any purpose, commercial or
non-commercial, and in any way".
"""


if __name__ == "__main__":
    main()
