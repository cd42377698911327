"""``python -m benchmarks.kernels``: what the GPU kernels take, read from their compiled code; no GPU is needed.

Registers, spills, shared memory, occupancy and accesses of 16 bytes of every CUDA kernel of the built ``fastssl._cuda``
and every Triton kernel as a training step launches it. Writes benchmarks/results/gpu_kernels.json, from which
``python -m benchmarks.publish`` makes docs/gpu-kernels.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton

from benchmarks import launches, publish
from fastssl import _build
from fastssl.files import atomic_write

WARP, REGISTERS, REGISTER_UNIT, MOST_WARPS, MOST_BLOCKS = 32, 65536, 256, 64, 32  # of a multiprocessor
SHARED = {80: 164 * 1024, 90: 228 * 1024, 100: 228 * 1024}  # bytes of a multiprocessor
SHARED_FOR_SYSTEM = 1024  # of each block
SEVERAL = "csrc/cuda/*.cuh"  # of a kernel that several sources use
FEATURES = 128  # of the rows that the Triton kernels are compiled for


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel on one GPU generation.

    ``shared`` are bytes a block: of a CUDA kernel those known before the launch, of a Triton kernel all. ``stack`` and
    ``local`` are spilled bytes a thread. ``wide_loads`` and ``wide_stores`` count instructions that move 16 bytes.
    """

    source: str
    name: str
    architecture: int
    registers: int
    stack: int
    local: int
    shared: int
    threads: int
    wide_loads: int
    wide_stores: int
    variant: str = ""  # of a CUDA kernel: what follows its name in the mangled one, the template's arguments first

    @property
    def occupancy(self) -> int:
        """Percent of a multiprocessor's warps that can be there at once."""
        warps = -(-self.threads // WARP)
        per_warp = -(-self.registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
        by_registers = REGISTERS // (per_warp * warps)
        by_shared = SHARED[self.architecture] // (self.shared + SHARED_FOR_SYSTEM)
        return 100 * min(by_registers, by_shared, MOST_WARPS // warps, MOST_BLOCKS) * warps // MOST_WARPS


def wide(sass: str) -> tuple[int, int]:
    """Loads and stores of 16 bytes a thread, from and to global memory; copies to shared memory are loads."""
    return len(re.findall(r"\b(?:LDG?\.E|LDGSTS)\S*\.128", sass)), len(re.findall(r"\bSTG?\.E\S*\.128", sass))


def plain(mangled: str) -> str:
    """The kernel's name in the source: in a mangled one each word stands after its length, and hashes may look so."""
    lengths = re.finditer(r"(?=(\d?\d)[a-z])", mangled)
    words = (mangled[length.end(1) : length.end(1) + int(length[1])] for length in lengths)
    return min((word for word in words if word.endswith("_kernel")), key=len, default=mangled)


def cuda_kernels(module: Path) -> Iterator[Kernel]:
    """Every kernel of the native module, on each generation that it was built for."""
    threads = {
        name: int(most)
        for name, most in re.findall(r"\.entry (\w+)\([^{]*?\.maxntid (\d+)", launches.cuobjdump("ptx", module))
    }
    for architecture in launches.ARCHITECTURES:
        only = ("--gpu-architecture", f"sm_{architecture}")
        functions = re.split(r"\n\s*Function : ", launches.cuobjdump("sass", module, *only))[1:]
        accesses = {code.partition("\n")[0].strip(): wide(code) for code in functions}
        used = re.findall(
            r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)",
            launches.cuobjdump("resource-usage", module, *only),
        )
        for name, registers, stack, shared, local in used:
            file = re.search(r"_\d+_([a-z]\w*?)_cu_[0-9a-f]{8}", name)
            yield Kernel(
                source=f"csrc/cuda/{file[1]}.cu" if file else SEVERAL,
                name=plain(name),
                architecture=architecture,
                registers=int(registers),
                stack=int(stack),
                local=int(local),
                shared=max(0, int(shared) - (SHARED_FOR_SYSTEM if architecture >= 90 else 0)),  # which may count that
                threads=threads.get(name, 1024),
                wide_loads=accesses[name][0],
                wide_stores=accesses[name][1],
                variant=name.rpartition(plain(name))[2],
            )


def triton_kernels() -> Iterator[Kernel]:
    """Every Triton kernel of a training step on bfloat16 and float32 rows of FEATURES features."""
    for op in launches.STEPS:
        for dtype in (torch.bfloat16, torch.float32):
            for architecture in launches.ARCHITECTURES:
                for launch in launches.launches(op, dtype, FEATURES, architecture):
                    yield triton_kernel(launch, dtype, architecture, launch.compile(architecture))


def triton_kernel(launch: launches.Launch, dtype: torch.dtype, architecture: int, compiled: Any) -> Kernel:
    used = launches.resources(compiled)
    loads, stores = wide(launches.dumped("sass", compiled))
    return Kernel(
        source=f"fastssl/ops/triton/{launch.op}.py",
        name=f"{launch.name.partition('.')[2]} {str(dtype).removeprefix('torch.')}",
        architecture=architecture,
        registers=used.registers,
        stack=used.stack,
        local=used.local,
        shared=used.shared,
        threads=WARP * compiled.metadata.num_warps,
        wide_loads=loads,
        wide_stores=stores,
    )


def module() -> Path:
    """The ``fastssl._cuda`` that was built of the sources here."""
    found = importlib.util.find_spec("fastssl._cuda")
    if found is None or found.origin is None:
        raise SystemExit("fastssl._cuda was not built: it needs nvcc; `fastssl info` says more")
    if stale := _build.stale():
        raise SystemExit(stale)
    return Path(found.origin)


def rows(kernels: list[Kernel]) -> list[dict[str, Any]]:
    """One row for the variants of a kernel (types, widths) on a generation: how many, and the most that one takes."""
    groups: dict[tuple[str, str, int], list[Kernel]] = {}
    for kernel in kernels:
        groups.setdefault((kernel.source, kernel.name, kernel.architecture), []).append(kernel)
    found = []
    for (source, name, architecture), variants in sorted(groups.items()):
        hungriest = max(variants, key=lambda kernel: (-kernel.occupancy, kernel.registers))
        row = {"source": source, "kernel": name, "architecture": architecture, "variants": len(variants)}
        untold = ("source", "name", "architecture", "variant")
        told = {key: value for key, value in asdict(hungriest).items() if key not in untold}
        told |= {key: max(getattr(variant, key) for variant in variants) for key in ("wide_loads", "wide_stores")}
        found.append({**row, **told, "occupancy": hungriest.occupancy})
    return found


def nvcc_version() -> str:
    if shutil.which("nvcc") is None:
        return "unknown"
    told = subprocess.check_output(["nvcc", "--version"], text=True)
    return str((re.findall(r"release [\d.]+, V([\d.]+)", told) or ["unknown"])[0])


def outdated(found: list[dict[str, Any]], compiler: str, version: str) -> list[str] | None:
    """Which of these rows the committed table tells otherwise; None if it was made with another version of it."""
    committed = json.loads(publish.KERNELS.read_text())
    if committed["compilers"][compiler] != version:
        return None
    return [f"{row['source']} {row['kernel']} {row['architecture']}" for row in found if row not in committed["rows"]]


def main() -> None:
    argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__).parse_args()
    compiled = [*cuda_kernels(module()), *triton_kernels()]
    compilers = {"triton": triton.__version__, "nvcc": nvcc_version()}
    with atomic_write(publish.KERNELS) as path:
        path.write_text(json.dumps({"compilers": compilers, "rows": rows(compiled)}, indent=1) + "\n")
    print(publish.KERNELS)


if __name__ == "__main__":
    main()
