"""The losses that docs/migrating.md names in place of another library's give its losses and gradients."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from other_libraries import load_or_skip
from torch import Tensor

from fastssl import losses

GUIDE = (Path(__file__).parents[2] / "docs" / "migrating.md").read_text()
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 3])
# the lines of the guide's table: theirs, ours, and what each is called with
TABLE = {
    "BarlowTwinsLoss(lambda_param=0.01)": ("BarlowTwins(0.01)", "lightly.loss", 2),
    "VICRegLoss(lambda_param=20.0, mu_param=15.0, nu_param=2.0)": ("VICReg(20.0, 15.0, 2.0)", "lightly.loss", 2),
    "KoLeoLoss()": ("KoLeo()", "lightly.loss", 1),
    "SupConLoss(temperature=0.1)": ("SupCon(0.1)", "pytorch_metric_learning.losses", 1),
}


def with_gradients(loss: Callable[..., Tensor], rows: list[Tensor], *labels: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in rows]
    result = loss(*leaves, *labels)
    result.backward()
    return [result.detach(), *(x.grad for x in leaves)]


@pytest.mark.parametrize("theirs", TABLE)
def test_is_in_the_guide_and_gives_the_same(theirs: str) -> None:
    ours, module, views = TABLE[theirs]
    assert any(f"`{theirs}`" in line and f"`{ours}`" in line for line in GUIDE.splitlines())
    rival = load_or_skip(module)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(8, 5, generator=generator) for _ in range(views)]
    labels = (LABELS,) if "SupCon" in ours else ()
    got, want = (
        with_gradients(eval(text, vars(where)), rows, *labels) for text, where in ((ours, losses), (theirs, rival))
    )
    for x, y in zip(got, want, strict=True):
        torch.testing.assert_close(x, y, rtol=2e-5, atol=2e-6)
