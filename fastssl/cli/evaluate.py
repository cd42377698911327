"""``fastssl evaluate``: what a run's encoder is worth."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from fastssl.cli import reading
from fastssl.cli.parser import Parser
from fastssl.cli.scoring import score
from fastssl.cli.tracking import score_tracking
from fastssl.cli.tuning import tune
from fastssl.data.davis import is_davis
from fastssl.errors import UserError
from fastssl.eval import FinetuneConfig
from fastssl.eval.tracking import TrackConfig
from fastssl.optim import OptimConfig
from fastssl.train.config import flattened
from fastssl.train.trained import open_run

DESCRIPTION = """\
Score a run's encoder, beside the same encoder untrained. --protocol says how:

  frozen    weighted kNN and a linear probe, beside raw pixels too, and the pretext task itself on the test images;
            written to RUN/scores.json, with --data to RUN/scores-DATA.json
  finetune  the linear probe, and all of the encoder fine-tuned; from a random start that is supervised training
  partial   as well its last blocks alone: half a block, 1, 2, 4 ...
  few       probe and fine-tuning with 1 % and 10 % of the labels, equally many of each class

The last three are written to RUN/tuned.json, with --data to RUN/tuned-DATA.json, case by case: the same command goes on
where one was stopped, and does nothing twice. The options --finetune.* are theirs.

Where DATA has videos with masks as DAVIS has them (JPEGImages and Annotations), the first mask of each is tracked by
what the network finds alike, and J and F are scored, beside the same network untrained and the first mask left where it
is. A gif of it is written to RUN/tracked-DATA.gif, and the report shows it. The options --track.* are for this.
"""

EXAMPLES = """\
  fastssl evaluate runs/simclr-clipart
  fastssl evaluate runs/photos --data labelled-photos
  fastssl evaluate runs/photos --protocol few --seeds 5
  fastssl evaluate runs/photos --protocol partial --finetune.epochs 50 --finetune.precision bfloat16
  fastssl evaluate runs/video_colorization-films --data DAVIS --sequences DAVIS/ImageSets/2017/val.txt
"""


def run(words: list[str]) -> int:
    """The command. Raises UserError for whatever cannot be used."""
    given = _parser().parse(words)
    settings = given.finetune.as_dict()
    config = FinetuneConfig(**{**settings, "optim": OptimConfig(**settings["optim"])})
    cache = reading.cache(given.no_cache, given.cache_limit)
    trained = open_run(Path(given.run))
    reading.refuse_recordings(trained.config)
    if given.data and is_davis(given.data):
        if given.protocol != "frozen":
            raise UserError(f"{given.data} has masks to track and no labels to train with: leave --protocol out")
        score_tracking(trained, given.data, TrackConfig(**given.track.as_dict()), given.sequences)
        return 0
    most = trained.config.max_skipped if given.max_skipped is None else given.max_skipped
    splits = reading.load_images(replace(trained.config, max_skipped=most), cache, given.data)
    other = Path(given.data).stem if given.data else None
    folder = trained.folder
    if given.protocol == "frozen":
        score(trained, splits, folder.scores if other is None else folder.scores_on(other))
    else:
        path = folder.tuned if other is None else folder.tuned_on(other)
        tune(trained, splits, path, given.protocol, given.seeds, config)
    return 0


def _parser() -> Parser:
    parser = Parser("evaluate RUN [--data DATA] [--protocol NAME]", DESCRIPTION, EXAMPLES)
    parser.add_argument("run", metavar="RUN", type=str, help="folder of a run")
    parser.add_argument(
        "--data", type=str | None, help="labelled images to score on, as for pretrain; null takes the run's own"
    )
    protocols = Literal["frozen", "finetune", "partial", "few"]
    parser.add_argument("--protocol", type=protocols, default="frozen", help="what is trained with labels")
    parser.add_argument("--seeds", type=int, default=3, help="how often each case is tuned, the seeds 0, 1, 2 ...")
    parser.add_argument("--sequences", type=str | None, help="a file with the names of the videos to track through")
    parser.add_argument(
        "--max_skipped",
        type=float | None,
        help="the share of the files, in [0, 1], above which unreadable ones are an error; null takes the run's own",
    )
    reading.add_cache_options(parser)
    parser.add_class_arguments(FinetuneConfig, "finetune")
    parser.set_defaults(flattened({"finetune": asdict(FinetuneConfig())}))
    parser.add_class_arguments(TrackConfig, "track")
    return parser
