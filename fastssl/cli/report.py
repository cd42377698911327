"""``fastssl report``: a run's report, drawn again."""

from __future__ import annotations

from pathlib import Path

from fastssl.cli import console, drawing, reading
from fastssl.cli.parser import Parser
from fastssl.errors import UserError
from fastssl.report import missing
from fastssl.train.trained import open_run

DESCRIPTION = """\
Draw RUN/report.html again, from the run's checkpoint, metrics and scores and the images it was trained on. It is one
file that needs no network. A run that is still going on, or was stopped, is drawn as far as it came.
"""

EXAMPLES = """\
  fastssl report runs/simclr-clipart
"""


def run(words: list[str]) -> int:
    """The command. Raises UserError for whatever cannot be used."""
    parser = Parser("report RUN", DESCRIPTION, EXAMPLES)
    parser.add_argument("run", metavar="RUN", type=str, help="folder of a run")
    reading.add_cache_options(parser)
    given = parser.parse(words)
    cache = reading.cache(given.no_cache, given.cache_limit)
    trained = open_run(Path(given.run))
    with reading.loaded(trained.config, cache) as data:
        known = reading.skipped(data)[:]
        console.describe_skipped(known, None if missing() else console.IN_REPORT)
        try:
            drawing.draw(trained, data)
        except ImportError as error:
            raise UserError(str(error)) from error
        print(f"report: {trained.folder.report}")
        console.sum_up(reading.skipped(data), len(known), console.IN_REPORT)
    return 0
