"""A process that leaves an epoch in the middle: it must end all the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from image_files import encode, noise, write_tree

SCRIPT = """
import sys
from importlib import import_module
from pathlib import Path
from fastssl.data import plans
from fastssl.data.sources import list_images

module, name, how, folder = sys.argv[1:]
loader = getattr(import_module(module), name)(list_images(Path(folder)), plans.simclr(16), 2, 0)
batches = loader.epoch(0)
next(batches)
if how == "error":
    raise KeyError("in the middle of an epoch")
"""


def abandon(module: str, loader: str, how: str, folder: Path) -> None:
    """Makes sure that a process with such a loader ends, at its "end" or by an "error" of its own."""
    write_tree(folder, {f"{i}.png": encode(noise(seed=i)) for i in range(12)})
    command = [sys.executable, "-c", SCRIPT, module, loader, how, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == (1 if how == "error" else 0), done.stderr
    assert ("in the middle of an epoch" in done.stderr) == (how == "error")
