"""``fastssl evaluate``: what a run's encoder is worth."""

from __future__ import annotations

from pathlib import Path

from fastssl.cli import console, reading
from fastssl.cli.parser import Parser
from fastssl.cli.scoring import score
from fastssl.train.trained import open_run

DESCRIPTION = """\
Score a run's frozen encoder by weighted kNN and a linear probe, beside the same encoder untrained and raw pixels.
The scores are printed and written to RUN/scores.json; with --data to RUN/scores-DATA.json.
"""

EXAMPLES = """\
  fastssl evaluate runs/simclr-clipart
  fastssl evaluate runs/photos --data labelled-photos
"""


def run(words: list[str]) -> int:
    """The command. Raises UserError for whatever cannot be used."""
    parser = Parser("evaluate RUN [--data DATA]", DESCRIPTION, EXAMPLES)
    parser.add_argument("run", metavar="RUN", type=str, help="folder of a run")
    parser.add_argument(
        "--data", type=str | None, help="labelled images to score on, as for pretrain; null takes the run's own"
    )
    reading.add_cache_options(parser)
    given = parser.parse(words)
    cache = reading.cache(given.no_cache, given.cache_limit)
    trained = open_run(Path(given.run))
    splits = reading.load_images(trained.config, cache, given.data)
    console.describe_data(splits, given.data or trained.config.data)
    score(trained, splits, trained.folder.scores_on(Path(given.data).stem) if given.data else trained.folder.scores)
    return 0
