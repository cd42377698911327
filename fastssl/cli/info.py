"""``fastssl info``: what is installed and found."""

from __future__ import annotations

from fastssl.cli.parser import Parser


def run(words: list[str]) -> int:
    """The command."""
    parser = Parser(
        "info [--ops]",
        "Versions, hardware, how each operation would be served on it, and what decoded images take of the disk.",
        "  fastssl info\n  fastssl info --ops\n",
    )
    parser.add_argument(
        "--ops", action="store_true", help="each operation's backends, and why one serves and not another"
    )
    every_op = parser.parse(words).ops
    from fastssl import info  # heavy, and not for --help
    from fastssl.cli import reading

    cache = reading.cache(no_cache=False, limit=None)
    info.main(every_op, {"decoded images": "not kept: there is no home folder" if cache is None else cache.usage()})
    return 0
