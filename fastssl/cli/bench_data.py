"""``fastssl bench-data``: which engine makes views fastest here, and whether a training step waits for it."""

from __future__ import annotations

import json
from pathlib import Path

from fastssl.cli import console, reading
from fastssl.cli.parser import Parser
from fastssl.cli.plan_options import add_plan_options, early, early_plan
from fastssl.data import plans
from fastssl.files import atomic_write
from fastssl.train.throughput import BenchConfig, load, measure

DESCRIPTION = """\
Time how fast each engine makes views of your own images, and how fast an encoder could train on them here.

DATA is a folder, zip or tar of images. Each engine runs in a process of its own; they and the training step (forward
and backward of the encoder on all views) take turns. An engine's images a second are those of whole batches, each
image with all its views.

Presets: {presets}.
"""

EXAMPLES = """\
  fastssl bench-data photos
  fastssl bench-data photos --preset dino --image_size 224 --batch_size 64 --encoder resnet50
  fastssl bench-data photos --seconds 30 --json photos.json
"""


def run(words: list[str]) -> int:
    """The command. Raises UserError for whatever cannot be used."""
    values = _parser(words).parse(words).as_dict()
    file = values.pop("json")
    config = BenchConfig(**values)
    reading.refuse_shards(config.data, "one engine alone reads")
    with reading.images_of(config.data, "bench-data") as progress:
        found = load(config, progress)
    with console.counting("measuring engines and step", "turns", often=1) as progress:  # it would slow them
        result = measure(config, found, progress)
    console.describe_skipped(result.skipped)
    console.show_throughput(result)
    if file is not None:
        with atomic_write(file) as partial:
            partial.write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
        print(f"measurements: {Path(file)}")
    return 0


def _parser(words: list[str]) -> Parser:
    parser = Parser("bench-data DATA [options]", DESCRIPTION.format(presets=", ".join(plans.names())), EXAMPLES)
    parser.add_argument("data", metavar="DATA", type=str, help="images, as for pretrain, but no shards")
    parser.add_argument("--json", type=str | None, help="file to write all that was measured to")
    parser.add_class_arguments(BenchConfig, skip={"data", "plan"})
    preset = plans.get(early(words, "--preset", None) or BenchConfig.preset)
    add_plan_options(parser, early_plan(words, preset, BenchConfig.image_size))
    return parser
