"""One compiled function, called with another batch and other settings: torch.compile then traces sizes and numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from fastssl import ops


def rows(n: int, d: int = 6) -> Tensor:
    """Unit rows that look random, without a generator, which no compiled function makes."""
    return normalize((torch.arange(float(n * d)) ** 2 + n).sin().view(n, d), dim=1)


def masked_ids(n: int) -> tuple[Tensor, Tensor]:
    keep, restore, _ = ops.random_masking(n, 10, 0.5, noise=rows(n, 10).abs())
    return keep, restore


def views(n: int, mean: float) -> Tensor:
    even = (torch.arange(n) % 2 == 0)[None]
    params = ops.ViewParams(
        crop=torch.tensor([1, 2, 5, 4]).expand(1, n, 4),
        flip=even,
        rot90=2 * even.long(),
        order=torch.tensor([2, 0, 3, 1]).expand(1, n, 4),
        factors=torch.tensor([0.7, 1.2, 1.4, -0.1]).expand(1, n, 4),
        gray=~even,
        sigma=even.float(),
        solarize=even,
    )
    images = (255 * rows(n, 126).abs()).byte().view(n, 3, 6, 7)
    return ops.augment(images, params, 5, mean=(mean, 0.0, 0.5))[0]


# of a batch and a number that a schedule may move
CALLS: dict[str, Callable[[int, float], Tensor]] = {
    "nt_xent": lambda n, t: ops.nt_xent(rows(n), rows(n + 1)[1:], temperature=t),
    "info_nce": lambda n, t: ops.info_nce(rows(n), rows(n + 2), temperature=t),
    "clip_loss": lambda n, t: ops.clip_loss(rows(n), rows(n + 1)[1:], logit_scale=10 * t),
    "siglip_loss": lambda n, t: ops.siglip_loss(rows(n), rows(n + 1)[1:], logit_scale=10 * t, logit_bias=-t),
    "queue_info_nce": lambda n, t: ops.queue_info_nce(rows(n), rows(n + 1)[1:], rows(50), temperature=t),
    "distillation_loss": lambda n, t: ops.distillation_loss(
        rows(4 * n).view(4, n, 6), rows(2 * n).view(2, n, 6), student_temp=2 * t, teacher_temp=t, center=rows(1)[0]
    ),
    "sinkhorn_knopp": lambda n, t: ops.sinkhorn_knopp(rows(n), temp=t, iterations=3),
    "knn_classify": lambda n, t: ops.knn_classify(
        rows(n), rows(40), torch.arange(40) % 3, k=5, temperature=t, num_classes=3
    ),
    "propagate_labels": lambda n, t: ops.propagate_labels(
        rows(3, 5 * n).view(3, n, 5),
        rows(6, 5 * n).view(2, 3, n, 5),
        rows(4, 5 * n).view(2, 2, n, 5),
        radius=2,
        k=3,
        temperature=t,
    ),
    "decode_ab": lambda n, t: ops.decode_ab(rows(n, 313 * 4).view(n, 313, 2, 2), ops.gamut_bins(), temperature=t),
    "take_patches": lambda n, t: t * ops.take_patches(rows(n, 60).view(n, 10, 6), masked_ids(n)[0]),
    "restore_patches": lambda n, t: t * ops.restore_patches(rows(n, 30).view(n, 5, 6), masked_ids(n)[1], rows(1)[0]),
    "rgb_to_lab": lambda n, t: t * ops.rgb_to_lab(rows(n, 12).abs().view(n, 3, 2, 2)),
    "augment": views,
    "encode_ab": lambda n, t: t * ops.encode_ab(40 * rows(n, 8).view(n, 2, 2, 2), ops.gamut_bins())[1],
}


@pytest.mark.parametrize("name", CALLS)
def test_traced_sizes_and_numbers(name: str) -> None:
    call = CALLS[name]
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    for n, t in ((8, 0.1), (5, 0.1), (9, 0.2), (7, 0.3)):
        torch.testing.assert_close(compiled(n, t), call(n, t))


# what they draw is another each time
DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "random_masking": lambda x: ops.random_masking(x.shape[0], 12, 0.75)[2],
    "block_masking": lambda x: ops.block_masking(x.shape[0], 4, 7),
    "tiles": lambda x: ops.tiles(x, 2, size=3, jitter=1),
}


@pytest.mark.parametrize("name", DRAWS)
def test_what_is_drawn_for_a_batch_of_another_size(name: str) -> None:
    compiled = torch.compile(DRAWS[name], fullgraph=True, backend="aot_eager")
    for n in (8, 5, 9):
        assert len(compiled(torch.randn(n, 3, 12, 12))) == n
