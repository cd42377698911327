"""``fastssl views``: what a view plan makes of images, as a picture and in words."""

from __future__ import annotations

from pathlib import Path

from fastssl.cli import console, reading
from fastssl.cli.parser import Parser
from fastssl.cli.photos import check_ending, save
from fastssl.cli.plan_options import add_plan_options, early, early_plan
from fastssl.data import engines, plan_words, plans
from fastssl.data.engines import Engine
from fastssl.data.reading import counted
from fastssl.data.sample import load_some
from fastssl.errors import UserError
from fastssl.report.grid import draw_rows
from fastssl.report.sample import draw_sample
from fastssl.train import config as configs
from fastssl.train.config import RunConfig

DESCRIPTION = """\
Draw what a view plan makes of a few images of DATA: a row an image, a column a view; and say in words what it does.

DATA is what pretrain takes. Presets: {presets}.
"""

EXAMPLES = """\
  fastssl views clipart --preset dino --out dino.png
  fastssl views photos --preset simclr --image_size 224 --plan.blur 0 --plan.crop_scale 0.4 1
  fastssl views photos --preset dino --engine stream
  fastssl views photos --preset dino --plan.local.views 4 --plan.local.crop_scale 0.05 0.25
"""

PRESET, IMAGE_SIZE = "simclr", RunConfig.image_size


def run(words: list[str]) -> int:
    """The command. Raises UserError for whatever cannot be used."""
    given = _parser(words).parse(words)
    out = Path(given.out)
    check_ending(out)
    for name in ("image_size", "rows"):
        if given[name] < 1:
            raise UserError(f"{name} must be 1 or more; got {given[name]}")
    configs.check_seed(given.seed)
    engines.require(given.engine)
    plan = plans.changed(plans.get(given.preset)(given.image_size), configs.plan_changes(given.plan.as_dict()))
    with reading.images_of(given.data, "views") as progress:
        found = load_some(given.data, size=given.image_size, count=given.rows, seed=given.seed, progress=progress)
    console.describe_skipped(found.skipped)
    sample = draw_sample(found, plan, rows=given.rows, seed=given.seed, engine=given.engine)
    save(draw_rows(sample, plan), out)
    if (drawn := len(sample.images)) < given.rows:
        console.tell(f"{counted(drawn, 'row')} of {given.rows}: other images are not there, or cannot be read")
    for row, position in enumerate(sample.chosen.tolist(), 1):
        print(f"row {row}: {found.names[position]}")
    print(plan_words.describe(plan))
    print(f"picture: {out}")
    return 0


def _parser(words: list[str]) -> Parser:
    description = DESCRIPTION.format(presets=", ".join(plans.names()))
    parser = Parser("views DATA [--preset PRESET] [options]", description, EXAMPLES)
    parser.add_argument("data", metavar="DATA", type=str, help="images, as for pretrain")
    parser.add_argument("--preset", type=str, default=PRESET, help="the plan")
    parser.add_argument(
        "--engine", type=Engine, default="native", help="what makes them: from squares in memory, or from the files"
    )
    parser.add_argument("--out", type=str, default="views.png", help="file to write: .png, .jpg or .webp")
    parser.add_argument("--image_size", type=int, default=IMAGE_SIZE, help="side of the square images, in pixels")
    parser.add_argument("--rows", type=int, default=4, help="images to show")
    parser.add_argument("--seed", type=int, default=0, help="of which images are shown, and of their views")
    preset = plans.get(early(words, "--preset", None) or PRESET)
    add_plan_options(parser, early_plan(words, preset, IMAGE_SIZE))
    return parser
