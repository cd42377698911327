"""``fastssl info``: what is installed and found."""

from __future__ import annotations

from fastssl.cli.parser import Parser


def run(words: list[str]) -> int:
    """The command."""
    Parser("info", "Versions, hardware, and how each operation would be served on it.", "  fastssl info\n").parse(words)
    from fastssl import info  # heavy, and not for --help

    info.main()
    return 0
