"""``fastssl evaluate``: what a run's encoder is worth."""

from __future__ import annotations

from pathlib import Path

from fastssl.cli import console, reading
from fastssl.cli.parser import Parser
from fastssl.cli.scoring import score
from fastssl.cli.tracking import score_tracking
from fastssl.data.davis import is_davis
from fastssl.eval.tracking import TrackConfig
from fastssl.train.trained import open_run

DESCRIPTION = """\
Score a run's frozen encoder by weighted kNN and a linear probe, beside the same encoder untrained and raw pixels.
The scores are printed and written to RUN/scores.json; with --data to RUN/scores-DATA.json.

Where DATA has videos with masks as DAVIS has them (JPEGImages and Annotations), the first mask of each is tracked by
what the network finds alike, and J and F are scored, beside the same network untrained and the first mask left where it
is. A gif of it is written to RUN/tracked-DATA.gif, and the report shows it. The options --track.* are for this.
"""

EXAMPLES = """\
  fastssl evaluate runs/simclr-clipart
  fastssl evaluate runs/photos --data labelled-photos
  fastssl evaluate runs/video_colorization-films --data DAVIS --sequences DAVIS/ImageSets/2017/val.txt
"""


def run(words: list[str]) -> int:
    """The command. Raises UserError for whatever cannot be used."""
    parser = Parser("evaluate RUN [--data DATA]", DESCRIPTION, EXAMPLES)
    parser.add_argument("run", metavar="RUN", type=str, help="folder of a run")
    parser.add_argument(
        "--data", type=str | None, help="labelled images to score on, as for pretrain; null takes the run's own"
    )
    parser.add_argument("--sequences", type=str | None, help="a file with the names of the videos to track through")
    parser.add_class_arguments(TrackConfig, "track")
    reading.add_cache_options(parser)
    given = parser.parse(words)
    cache = reading.cache(given.no_cache, given.cache_limit)
    trained = open_run(Path(given.run))
    if given.data and is_davis(given.data):
        score_tracking(trained, given.data, TrackConfig(**given.track.as_dict()), given.sequences)
        return 0
    splits = reading.load_images(trained.config, cache, given.data)
    console.describe_data(splits, given.data or trained.config.data)
    score(trained, splits, trained.folder.scores_on(Path(given.data).stem) if given.data else trained.folder.scores)
    return 0
