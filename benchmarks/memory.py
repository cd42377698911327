"""Prints, in MB, what one call of one provider adds to the high-water mark of this process: a process a measurement.

Workers that the call leaves at work, as DataLoader's persistent ones, are processes of their own: what it adds to each
of theirs is added, though they need not be at their highest at the same moment.
"""

from __future__ import annotations

import multiprocessing
import os
import sys

import torch

from benchmarks.harness import cases
from fastssl.ops import _native
from fastssl.train.memory import PeakMemory


def main(op: str, name: str, provider: str, count: str) -> None:
    torch.set_num_threads(int(count))
    (case,) = (case for case in cases(op) if case.name == name)
    work = case.providers[provider]()
    work()
    if _native.cpu is not None:
        _native.cpu.release_kept()  # working memory that the first call left for the second
    peaks = [PeakMemory(), *(PeakMemory(worker.pid) for worker in multiprocessing.active_children())]
    work()
    print(sum(peak.megabytes() for peak in peaks))


if __name__ == "__main__":
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:
        # freed blocks go back to the system at once, so that the first call's do not hide the second's
        os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
        os.execv(sys.executable, [sys.executable, "-m", "benchmarks.memory", *sys.argv[1:]])
    main(*sys.argv[1:])
