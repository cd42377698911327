"""``fastssl embed``: images to a table of features."""

from __future__ import annotations

from pathlib import Path

from fastssl.cli import console, reading
from fastssl.cli.parser import Parser
from fastssl.data.images import MAX_SKIPPED
from fastssl.data.reading import counted
from fastssl.eval import extract
from fastssl.train.export import check_table, write_features
from fastssl.train.reproduce import reproducible, resolve_device
from fastssl.train.trained import open_run

DESCRIPTION = """\
Compute the features of every image of DATA (a folder, zip or tar) with a run's encoder.

FILE.npz holds arrays: features (N, F) float32, names (N,), and, if folders name classes, labels (N,) and classes.
FILE.csv has a row for each image: name, label (if there is one), f0, f1, ...
"""

EXAMPLES = """\
  fastssl embed runs/photos new-photos --out features.npz
  fastssl embed runs/photos new-photos.zip --out features.csv
"""


def run(words: list[str]) -> int:
    """The command. Raises UserError for whatever cannot be used."""
    parser = Parser("embed RUN DATA --out FILE.npz|FILE.csv", DESCRIPTION, EXAMPLES)
    parser.add_argument("run", metavar="RUN", type=str, help="folder of a run")
    parser.add_argument("data", metavar="DATA", type=str, help="images to embed")
    parser.add_argument("--out", type=str, required=True, help="file to write; its ending chooses the format")
    parser.add_argument(
        "--max_skipped",
        type=float,
        default=MAX_SKIPPED,
        help="the share of the files, in [0, 1], above which unreadable ones are an error; one is always allowed",
    )
    reading.add_cache_options(parser)
    given = parser.parse(words)
    cache = reading.cache(given.no_cache, given.cache_limit)
    out = Path(given.out)
    check_table(out)
    trained = open_run(Path(given.run))
    config = trained.config
    reading.refuse_recordings(config)
    found = reading.load_all(given.data, cache, size=config.image_size, max_skipped=given.max_skipped)
    console.describe_skipped(found.skipped)
    with reproducible(config.seed, config.threads), console.counting("computing features") as progress:
        device = resolve_device(config.device)
        features = extract(trained.encoder.to(device), found.images, size=config.image_size, progress=progress)
    write_features(features, found, out)
    print(f"{counted(features.shape[0], 'image')} x {counted(features.shape[1], 'feature')}: {out}")
    return 0
