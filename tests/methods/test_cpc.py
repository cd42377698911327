from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastssl.data.tiling import overlapping_sides, with_own_colors
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


# What is done to each patch beside cutting it, left out.
PLAIN = {"flip": 0.0, "color_jitter": 0.0, "grey": 0.0}


@pytest.fixture
def plain() -> CPC:
    """Patches as they are, in float64, so that each number can be followed."""
    torch.manual_seed(0)
    settings = CPCConfig(grid=4, first_step=1, last_step=2, context_layers=2, jitter=0.0, **PLAIN)
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
    steps, bounds, solved = [], [], []
    for k, matrix in ((1, plain.ahead.predict[0].weight), (2, plain.ahead.predict[1].weight)):
        candidates = [z[place] for place in places if place[1] >= k]
        terms = []
        for n, r, c in (place for place in places if place[1] + k < 4):
            predicted = (matrix @ contexts[n, r, c]).tolist()

            def score(latent: Tensor, predicted: list[float] = predicted) -> float:
                return sum(a * b for a, b in zip(predicted, latent.tolist(), strict=True))

            if k == 1:
                solved.append(score(z[n, r + k, c]) == max(map(score, candidates)))
            total = sum(math.exp(score(latent)) for latent in candidates)
            terms.append(-math.log(math.exp(score(z[n, r + k, c])) / total))
        steps.append(sum(terms) / len(terms))
        bounds.append(math.log(len(candidates)) - steps[-1])
    assert plain([views]).item() == pytest.approx(sum(steps) / 2, rel=1e-10)
    assert plain.metrics(0.0, 3) == {
        "mutual_information_bound": pytest.approx(sum(bounds) / 2, rel=1e-8),
        "pretext_accuracy": pytest.approx(sum(solved) / len(solved)),
        "chance": pytest.approx(1 / len(solved)),
    }


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
    torch.testing.assert_close(patches[:, 0, 0], views[:, :, :8, :8])
    torch.testing.assert_close(patches[:, 3, 2], views[:, :, 12:, 8:16])


def test_jitter_cuts_each_patch_at_a_place_of_its_own() -> None:
    method = CPC(Corners(), CPCConfig(grid=4, last_step=3, jitter=0.25, **PLAIN))
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
            if torch.allclose(patches[n, r, c], views[n, :, 4 * r + y : 4 * r + y + 6, 4 * c + x : 4 * c + x + 6])
        ]
        assert len(at) == 1
        found.update(at)
    assert len(found) == 9


def test_patches_are_mirrored_by_themselves() -> None:
    method = CPC(Corners(), CPCConfig(grid=4, last_step=3, jitter=0.0, **{**PLAIN, "flip": 0.5}))
    straight = CPC(Corners(), CPCConfig(grid=4, last_step=3, jitter=0.0, **PLAIN))
    views = images(8, 20)
    found, expected = method.patches(views), straight.patches(views)
    mirrored = torch.isclose(found, expected.flip(-1)).flatten(3).all(-1)
    torch.testing.assert_close(found[~mirrored], expected[~mirrored])
    assert 0.35 < mirrored.double().mean().item() < 0.65


def test_each_patch_has_colours_of_its_own() -> None:
    torch.manual_seed(0)
    patches = images(400, 6).mul(0.3).add(0.1).view(20, 20, 3, 6, 6)
    changed = with_own_colors(patches, 0.5, 0.0)
    gain = changed.std((-1, -2)) / patches.std((-1, -2))
    shift = (changed - gain[..., None, None] * (patches - patches.mean((-3, -2, -1), keepdim=True))).mean((-1, -2))
    assert gain.log().std().item() == pytest.approx(0.5 * 1.25**0.5, rel=0.1)
    assert (shift - 0.1).std().item() == pytest.approx(0.5 * 1.25**0.5, rel=0.1)
    for found in (gain.log(), shift):  # of the variance four fifths are of the whole patch
        assert found.mean(-1).var().item() == pytest.approx(0.25 + 0.25 / 4 / 3, rel=0.2)
    torch.testing.assert_close(with_own_colors(patches, 0.0, 0.0), patches)


def test_grey_patches_have_equal_channels() -> None:
    torch.manual_seed(0)
    patches = images(400, 6).view(20, 20, 3, 6, 6)
    changed = with_own_colors(patches, 0.0, 0.3)
    is_grey = (changed - changed[:, :, :1]).abs().amax((2, 3, 4)) < 1e-9
    assert is_grey.double().mean().item() == pytest.approx(0.3, abs=0.07)
    torch.testing.assert_close(changed[~is_grey], patches[~is_grey])
    luma = (torch.tensor([0.299, 0.587, 0.114], dtype=torch.float64).view(3, 1, 1) * patches).sum(2)
    torch.testing.assert_close(changed[is_grey][:, 1], luma[is_grey])


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
        ({"grey": 1.5}, r"the grey of cpc must be a share in \[0, 1\]; got 1\.5"),
        ({"flip": -0.5}, "the flip of cpc must be a share"),
        ({"color_jitter": -1.0}, "color_jitter"),
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


def test_a_prediction_is_looked_for_among_few_of_many_samples() -> None:
    method = CPC(Corners(), CPCConfig(grid=4, first_step=1, last_step=2))
    targets = torch.eye(1000)
    method.note_predictions([-targets, targets], [targets, targets], torch.tensor(0.0))
    assert method.metrics(0.0, 3)["pretext_accuracy"] == 0
    method.note_predictions([targets, targets], [targets, targets], torch.tensor(0.0))
    told = method.metrics(0.0, 3)
    assert (told["pretext_accuracy"], told["chance"]) == (1, pytest.approx(1 / 250))
