from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastssl.data.tiling import overlapping_sides
from fastssl.errors import UserError
from fastssl.methods.cpc import CPC, CPCConfig


class Corners(nn.Module):
    """An encoder that tells a patch's mean colour and its first pixel."""

    feature_dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 6, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * torch.cat([x.mean((2, 3)), x[:, :, 0, 0]], dim=1)


@pytest.fixture
def plain() -> CPC:
    """Patches as they are, in float64, so that each number can be followed."""
    torch.manual_seed(0)
    settings = CPCConfig(grid=4, first_step=1, last_step=2, context_layers=2, jitter=0.0, drop_colors=False)
    return CPC(Corners(), settings).double()


def images(count: int, size: int) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_the_loss_is_equation_4_number_by_number(plain: CPC) -> None:
    views = images(3, 20)
    places = [(n, r, c) for n in range(3) for r in range(4) for c in range(4)]
    # patches of 8 pixels, of which a neighbour has half
    z = {(n, r, c): plain.encoder(views[n : n + 1, :, 4 * r : 4 * r + 8, 4 * c : 4 * c + 8])[0] for n, r, c in places}
    grid = torch.stack([z[place] for place in places]).view(3, 4, 4, -1)
    contexts = plain.context(grid.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    steps, bounds = [], []
    for k, matrix in ((1, plain.ahead.predict[0].weight), (2, plain.ahead.predict[1].weight)):
        candidates = [z[place] for place in places if place[1] >= k]
        terms = []
        for n, r, c in (place for place in places if place[1] + k < 4):
            predicted = (matrix @ contexts[n, r, c]).tolist()

            def score(latent: Tensor, predicted: list[float] = predicted) -> float:
                return sum(a * b for a, b in zip(predicted, latent.tolist(), strict=True))

            total = sum(math.exp(score(latent)) for latent in candidates)
            terms.append(-math.log(math.exp(score(z[n, r + k, c])) / total))
        steps.append(sum(terms) / len(terms))
        bounds.append(math.log(len(candidates)) - steps[-1])
    assert plain([views]).item() == pytest.approx(sum(steps) / 2, rel=1e-10)
    assert plain.metrics(0.0, 3) == {"mutual_information_bound": pytest.approx(sum(bounds) / 2, rel=1e-8)}


def test_the_temperature_divides_the_scores(plain: CPC) -> None:
    halved = CPC(Corners(), CPCConfig(**{**vars(plain.config), "temperature": 0.5})).double()
    halved.load_state_dict(plain.state_dict())
    before = halved([images(3, 20)])
    with torch.no_grad():
        for predict in halved.ahead.predict:
            predict.weight /= 2
    assert halved([images(3, 20)]).item() == pytest.approx(plain([images(3, 20)]).item(), rel=1e-10)
    assert before.item() != pytest.approx(plain([images(3, 20)]).item(), rel=1e-4)


def test_patches_overlap_and_reach_the_edges(plain: CPC) -> None:
    views = images(2, 20)
    patches = plain.patches(views)
    assert patches.shape == (2, 4, 4, 3, 8, 8)
    assert torch.equal(patches[:, 0, 0], views[:, :, :8, :8])
    assert torch.equal(patches[:, 3, 2], views[:, :, 12:, 8:16])


def test_jitter_cuts_each_patch_at_a_place_of_its_own() -> None:
    method = CPC(Corners(), CPCConfig(grid=4, last_step=3, jitter=0.25, drop_colors=False))
    views = images(4, 20)
    torch.manual_seed(0)
    patches = method.patches(views)
    assert patches.shape == (4, 4, 4, 3, 6, 6)
    found = set()
    for n, r, c in ((n, r, c) for n in range(4) for r in range(4) for c in range(4)):
        at = [
            (y, x)
            for y in range(3)
            for x in range(3)
            if torch.equal(patches[n, r, c], views[n, :, 4 * r + y : 4 * r + y + 6, 4 * c + x : 4 * c + x + 6])
        ]
        assert len(at) == 1
        found.update(at)
    assert len(found) == 9


def test_dropped_colours_leave_one_channel_of_each_patch() -> None:
    method = CPC(Corners(), CPCConfig(grid=4, last_step=3, jitter=0.0))
    plain = CPC(Corners(), CPCConfig(grid=4, last_step=3, jitter=0.0, drop_colors=False))
    views = images(4, 20)
    torch.manual_seed(0)
    kept = (method.patches(views) == plain.patches(views)).all(-1).all(-1)
    assert bool((kept.sum(-1) == 1).all())
    assert bool(kept.flatten(0, 2).any(0).all())


def test_no_gradient_comes_from_rows_that_are_not_compared(plain: CPC) -> None:
    views = images(2, 20).requires_grad_()
    latents = plain.encoder(plain.patches(views).flatten(0, 2)).unflatten(0, (2, 4, 4))
    contexts = plain.context(latents.movedim(-1, 1)).movedim(1, -1)
    contexts[0, 1].sum().backward()
    assert views.grad is not None
    assert bool(views.grad[0, :, :12].any())
    assert not bool(views.grad[0, :, 12:].any())  # rows 0 and 1 end there
    assert not bool(views.grad[1].any())


def test_sides_of_patches() -> None:
    assert overlapping_sides("cpc", 256, 7, 0.5, 4 / 64) == (64, 60)  # the paper's
    assert overlapping_sides("cpc", 48, 7, 0.5, 4 / 64) == (12, 11)
    assert overlapping_sides("cpc", 48, 7, 0.5, 0.0) == (12, 12)


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(UserError, match=r"cpc cuts 7 x 7 patches of 3 pixels or more, and images of 8 pixels give"):
        CPC(Corners(), CPCConfig()).patches(images(1, 8))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"overlap": 1.0}, r"the overlap of cpc must be a share in \[0, 1\); got 1\.0"),
        ({"jitter": -0.1}, r"the jitter of cpc must be a share"),
        ({"last_step": 7}, r"fewer than the 7 of its grid; got 2 to 7"),
        ({"first_step": 6}, r"got 6 to 5"),
        ({"first_step": 0}, "first_step"),
        ({"context_layers": 0}, "context_layers"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(UserError, match=said):
        CPCConfig(**settings)
