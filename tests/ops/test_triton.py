"""The Triton kernels without a GPU: interpreted on the CPU, and compiled for each GPU generation."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from fastssl.ops.triton import nt_xent  # noqa: E402

HERE = Path(__file__).parent
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
ARCHITECTURES = [80, 90, 100]
LAUNCH_OPTIONS = ("num_warps", "num_stages")


def test_interpreted_kernels_are_right() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", str(HERE / "interpreted")],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]


def sources() -> list[Any]:
    cases = []
    for dtype, d in itertools.product((torch.float32, torch.bfloat16, torch.float16), (128, 256)):
        tensor = {torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16"}[dtype]
        sizes = {"rows": "i32", "d": "i32", "scale": "fp32"}
        forward = {"z": tensor, "row_loss": "*fp32", "lse": "*fp32", **sizes}
        backward = {"z": tensor, "lse": "*fp32", "grad": "*fp32", "grads": tensor, **sizes}
        for kernel, signature in ((nt_xent._forward_kernel, forward), (nt_xent._backward_kernel, backward)):
            name = f"{kernel.__name__}-{tensor[1:]}-{d}"
            cases.append(pytest.param(kernel, signature, nt_xent.constants(dtype, d), id=name))
    return cases


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("kernel", "signature", "fixed"), sources())
def test_compiles_for_tensor_cores_without_spills(
    kernel: Any, signature: dict[str, str], fixed: dict[str, Any], architecture: int, tmp_path: Path
) -> None:
    constants = {name: value for name, value in fixed.items() if name not in LAUNCH_OPTIONS}
    full = {**signature, **dict.fromkeys(constants, "constexpr")}
    # torch's memory is aligned to 16 bytes, and Triton knows it at run time; here it must be told
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(full.values()) if kind.startswith("*")}
    source = ASTSource(kernel, signature=full, constexprs=constants, attrs=aligned)
    compiled = triton.compile(
        source, target=GPUTarget("cuda", architecture, 32), options={name: fixed[name] for name in LAUNCH_OPTIONS}
    )
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    usage = subprocess.check_output([TOOLS / "cuobjdump", "--dump-resource-usage", cubin], text=True)
    stack, local = (int(re.search(rf"{word}:(\d+)", usage)[1]) for word in ("STACK", "LOCAL"))
    assert (stack, local) == (0, 0), usage
    assert re.search(r"\b(mma|wgmma|tcgen05)\b", compiled.asm["ptx"]), "no tensor-core instruction"
