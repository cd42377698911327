"""The command ``fastssl``: words to a config, a config to a run.

Each command is a module of this package with a function ``run(words) -> exit code``, imported only when it is called.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fastssl
from fastssl.allocator import keep_freed_memory
from fastssl.errors import UserError, unknown

COMMANDS = {
    "pretrain": "train an encoder on images without labels, score it, draw the report",
    "evaluate": "score a run's encoder beside an untrained one and raw pixels",
    "embed": "turn a folder of images into a table of features",
    "export": "write a run's encoder as safetensors that torchvision loads",
    "track": "follow objects, marked in the first frame of a video, through all of it",
    "report": "draw a run's report.html again",
    "colorize": "give a photo the colours that a run of colorization predicts",
    "inpaint": "fill a hole in a photo by a run of inpainting",
    "views": "draw what a view plan makes of images, and say it in words",
    "bench-data": "which engine makes views fastest here, and whether a training step waits for it",
    "info": "versions, hardware, and which kernels serve each operation",
}

HELP = f"""\
usage: fastssl COMMAND [options]

Self-supervised learning on images: train an encoder without labels, see what it learnt, use it.

commands:
{chr(10).join(f"  {name:<11} {text}" for name, text in COMMANDS.items())}

options:
  -h, --help     show this; after a command, that command's options
  --version      show the version

examples:
  fastssl pretrain simclr --epochs 20                 on the embedded drawings
  fastssl pretrain simclr --data photos --out runs/photos
  fastssl embed runs/photos new-photos --out features.npz
  fastssl export runs/photos --out encoder.safetensors
"""

FAILED, INTERRUPTED = 2, 130
PACKAGE = Path(__file__).parent.parent
LESS_MEMORY = "give a smaller --batch_size, --image_size or --width"


def main(words: Sequence[str] | None = None) -> int:
    """Runs the command line ``words``, by default the process's own.

    Returns:
        The exit code: 0, 2 for an error of the user's, 130 if interrupted.
    """
    words = list(sys.argv[1:] if words is None else words)
    keep_freed_memory()
    try:
        with _plain_warnings():
            return _dispatch(words)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        print(f"error: out of memory ({' '.join(str(error).split())}): {LESS_MEMORY}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        return INTERRUPTED


@contextmanager
def _plain_warnings() -> Iterator[None]:
    """A warning to the user is its sentence, without the line of the program that it comes from."""
    with warnings.catch_warnings():
        show = warnings.showwarning

        def tell(message: Warning | str, category: type[Warning], filename: str, *where: Any, **more: Any) -> None:
            if category is UserWarning and Path(filename).is_relative_to(PACKAGE):
                print(message, file=sys.stderr)
            else:
                show(message, category, filename, *where, **more)

        warnings.showwarning = tell
        yield


def _out_of_memory(error: Exception) -> bool:
    """torch has a class of its own for a GPU, and only words for a CPU."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or "not enough memory" in str(error)
        or "can't allocate memory" in str(error)
    )


def _dispatch(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        print(f"fastssl {fastssl.__version__}")
        return 0
    if words[0] not in COMMANDS:
        raise unknown("command", words[0], COMMANDS)
    code: int = importlib.import_module(f"fastssl.cli.{words[0].replace('-', '_')}").run(words[1:])
    return code
