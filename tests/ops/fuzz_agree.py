"""How the results of a valid call are judged: against the formula in float64, within the roundings of ``CALLS``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from fuzz_calls import CALLS, Arguments
from fuzz_helpers import Terms, mapped, run, tensors_of
from torch import Tensor

from fastssl import ops


def in_float64(arguments: Arguments) -> Arguments:
    return {
        key: mapped(value, lambda x: x.double() if x.is_floating_point() else x) for key, value in arguments.items()
    }


def assert_agree(name: str, arguments: Arguments, asking: Sequence[str], results: dict[str, dict[str, Tensor]]) -> None:
    """What ``run`` gave on each engine is, to rounding, what the formula gives in float64."""
    op = CALLS[name]
    exact = in_float64(arguments) if op.errors else arguments
    with ops.backend("reference"):
        want = run(name, exact, op.written, asking)
    given_types = {x.dtype for value in arguments.values() for x in tensors_of(value) if x.is_floating_point()}
    computed_in = torch.float64 if given_types == {torch.float64} else torch.float32
    for engine, got in results.items():
        if op.agree:
            op.agree(arguments, got)
            continue
        assert got.keys() == want.keys()
        for key, x in got.items():
            if op.errors is None or not x.is_floating_point():
                assert torch.equal(x, want[key]), f"{engine}: {key}"
                continue
            error = op.errors(exact)[key.startswith("gradient")]
            # what stands for exact is in float64 itself, and rounded as torch's sums happen to be
            units = (512 if computed_in == torch.float64 else 64) * torch.finfo(computed_in).eps
            assert x.isfinite().all(), f"{engine}: {key} is not finite"
            if isinstance(error, Terms):
                off, allowed = (x.double() - want[key]).norm(), error.allowed(key, want[key], x.dtype, units)
                assert off <= allowed, f"{engine}: {key} is off by {off}, over {allowed}"
                continue
            atol = units * error + torch.finfo(x.dtype).tiny
            torch.testing.assert_close(
                x.double(),
                want[key],
                rtol=2 * torch.finfo(x.dtype).eps,
                atol=atol,
                msg=lambda m: f"{engine}: {key}: {m}",  # noqa: B023
            )
