"""What all generated pages share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MADE = "<!-- made by `python -m benchmarks.publish` from benchmarks/results; do not edit -->\n"


def table_of(head: Sequence[str], numbers_from: int, rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table; the columns from ``numbers_from`` on stand to the right."""
    rule = ["---" if i < numbers_from else "---:" for i in range(len(head))]
    return "\n".join(f"| {' | '.join(map(str, cells))} |" for cells in (head, rule, *rows))


def circumstances(run: dict[str, Any]) -> str:
    shown = {name: value for name, value in run.items() if value not in ("", None)}
    if "rivals" in shown:
        shown["rivals"] = ", ".join(f"{package} {version}" for package, version in shown["rivals"].items())
    floors = shown.get("floors")
    if isinstance(floors, dict) and "sentence" in floors:
        shown["floors"] = floors["sentence"]
    elif isinstance(floors, dict):
        ways = {size: max(way.values()) for size, way in floors["bandwidths"].items()}
        bfloat16 = f", {floors['bfloat16_gflops']:.0f} of bfloat16's" if "bfloat16_gflops" in floors else ""
        shown["floors"] = (
            f"{floors['fma_gflops']:.0f} GFLOP/s of multiply-adds ({floors['gemm_gflops']:.0f} in torch's products)"
            f"{bfloat16}; "
            f"{floors['exp_billions_per_second']:.1f} billion exp/s ({floors['torch_exp_billions_per_second']:.1f} by "
            f"torch); GB/s over {', '.join(f'{size} MB: {rate:.0f}' for size, rate in ways.items())}"
        )
    return "\n".join(f"- {name.replace('_', ' ')}: {value}" for name, value in shown.items())
