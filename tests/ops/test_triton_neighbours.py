"""The kernels that seek neighbours, compiled for each GPU generation without a GPU."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from emulated import INTERPRETING

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from fastssl.ops.triton import _neighbours as kernels  # noqa: E402

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTERS = {torch.float32: "*fp32", torch.bfloat16: "*bf16"}
NUMBERS = "rows columns d k capacity first_tile height width radius stride classes class_blocks row_stride class_stride"
COUNTS = dict.fromkeys(NUMBERS.split(), "i32")
BUFFERS = {"values": "*fp32", "ids": "*i32", "kept_values": "*fp32", "kept_ids": "*i32"}
SCALES = {"scales": "*fp32", "x_scales": "*fp32", "bank_scales": "*fp32"}

pytestmark = pytest.mark.skipif(INTERPRETING, reason="interpreted kernels are not compiled")


def compiled(kernel: Any, fixed: dict[str, Any], architecture: int, types: dict[str, str], whole: bool) -> Any:
    """As the launch compiles it; ``whole`` tells that D is a multiple of 16, which Triton looks at."""
    options = {name: fixed[name] for name in ("num_warps", "num_stages")}
    constants = {name: value for name, value in fixed.items() if name not in options}
    known = {**COUNTS, **BUFFERS, **SCALES, "temperature": "fp32", **types, **dict.fromkeys(constants, "constexpr")}
    signature = {name: known[name] for name in kernel.arg_names}
    aligned = [i for i, name in enumerate(signature) if signature[name].startswith("*") or (whole and name == "d")]
    source = ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned})
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def assert_no_spills(compiled: Any, folder: Path) -> None:
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    usage = subprocess.check_output([TOOLS / "cuobjdump", "--dump-resource-usage", cubin], text=True)
    assert {int(n) for n in re.findall(r"(?:STACK|LOCAL):(\d+)", usage)} == {0}, usage


@pytest.mark.parametrize("architecture", [80, 90, 100])
@pytest.mark.parametrize("window", [False, True], ids=["bank", "window"])
@pytest.mark.parametrize(("dtype", "d"), [(torch.float32, 384), (torch.bfloat16, 384), (torch.bfloat16, 100)], ids=str)
def test_the_search_is_compiled_for_tensor_cores_without_spills(
    dtype: torch.dtype, d: int, window: bool, architecture: int, tmp_path: Path
) -> None:
    types = {"x": POINTERS[dtype], "bank": POINTERS[dtype]}
    fixed = kernels.constants(dtype, d, window)
    found = compiled(kernels._nearest_kernel, fixed, architecture, types, d % 16 == 0)
    assert_no_spills(found, tmp_path)
    wanted = {80: r"\bmma\.sync", 90: r"\bwgmma\.mma", 100: r"\btcgen05\.mma"}[architecture]
    assert re.search(wanted, found.asm["ptx"]), "no tensor-core instruction"


@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_the_rest_is_compiled_without_spills(architecture: int, tmp_path: Path) -> None:
    for dtype in POINTERS:
        types = {"x": POINTERS[dtype]}
        assert_no_spills(compiled(kernels._scales_kernel, kernels.SCALES, architecture, types, True), tmp_path)
    assert_no_spills(compiled(kernels._merge_kernel, kernels.MERGE, architecture, {}, True), tmp_path)
    for votes in (True, False):
        types = {"of_rows": "*i64" if votes else "*fp32", "out": "*fp32"}
        fixed = kernels.average_constants(20, 1000, votes)
        assert_no_spills(compiled(kernels._average_kernel, fixed, architecture, types, True), tmp_path)
