from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from fastssl.data.lab import from_lab, to_lab, to_rgb
from fastssl.errors import UserError
from fastssl.methods.video_colorization import VideoColorization, VideoColorizationConfig

COLORS = torch.tensor([[-40.0, 30.0], [-20.0, -20.0], [0.0, 0.0], [30.0, -40.0], [50.0, 40.0]])


class Lightness(nn.Module):
    """An encoder that leaves the image as it is: its features are the three equal channels."""

    feature_dim = 3

    def maps(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.maps(x).mean((2, 3))


@pytest.fixture
def method() -> VideoColorization:
    torch.manual_seed(0)
    method = VideoColorization(Lightness(), VideoColorizationConfig(colors=5, dim=4, temperature=0.3))
    method.colors.copy_(COLORS)
    return method


def clips(*shape: int, seed: int = 0) -> Tensor:
    """(*shape, 3, H, W) views of colours near those there are, each position another lightness."""
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(5, shape, generator=generator)
    lightness = 45 + 10 * torch.rand(shape, generator=generator)
    lab = torch.stack([lightness, *(COLORS[which] + 2).unbind(-1)], 0).movedim(0, -3)
    return from_lab(lab.flatten(0, -4)).unflatten(0, shape[:-2])


def test_the_loss_is_equations_1_to_3_number_by_number(method: VideoColorization) -> None:
    views = clips(2, 3, 2, 3)
    lab = to_lab(views.flatten(0, 1)).unflatten(0, (2, 3))
    embeddings = method.embed(to_rgb(views.flatten(0, 1))).unflatten(0, (2, 3))
    total, count, right = 0.0, 0, 0
    for n in range(2):
        named = [(t, y, x) for t in range(3) for y in range(2) for x in range(3)]
        color = {at: int((lab[n, at[0], 1:, at[1], at[2]] - COLORS).norm(dim=1).argmin()) for at in named}
        code = {at: embeddings[n, at[0], :, at[1], at[2]].tolist() for at in named}
        references = [at for at in named if at[0] < 2]
        for target in (at for at in named if at[0] == 2):
            weight = {
                at: math.exp(sum(a * b for a, b in zip(code[target], code[at], strict=True)) / 0.3) for at in references
            }
            copied = [sum(w for at, w in weight.items() if color[at] == c) / sum(weight.values()) for c in range(5)]
            right += max(range(5), key=copied.__getitem__) == color[target]
            if copied[color[target]] > 0:
                total, count = total - math.log(copied[color[target]]), count + 1
    assert count > 8
    assert method([views]).item() == pytest.approx(total / count, rel=1e-4)
    assert method.metrics(0.0, 2)["pretext_accuracy"] == pytest.approx(right / 12)


def test_a_colour_that_no_reference_has_does_not_count_in_the_loss(method: VideoColorization) -> None:
    lab = torch.full((1, 2, 3, 2, 2), 50.0)
    lab[:, :, 1:] = COLORS[0][:, None, None]
    lab[:, 1, 1:, 0, 0] = COLORS[3]
    views = from_lab(lab.flatten(0, 1)).unflatten(0, (1, 2))
    assert method([views]).item() == pytest.approx(0, abs=1e-6)
    metrics = method.metrics(0.0, 1)
    assert metrics["pretext_accuracy"] == metrics["unmoved_accuracy"] == metrics["chance"] == 0.75
    lab[:, 1, 1:] = COLORS[3][:, None, None]
    nothing = method([from_lab(lab.flatten(0, 1)).unflatten(0, (1, 2))])
    assert nothing.item() == 0
    nothing.backward()
    assert all(bool(p.grad.isfinite().all()) for p in method.parameters() if p.grad is not None)


def test_copies_are_means_by_the_softmax_of_cosines(method: VideoColorization) -> None:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(2, 4, 6, 3, 5, generator=generator), dim=2)
    values = torch.randn(2, 3, 7, 3, 5, generator=generator)
    found = method.copy(embeddings, values)
    query, keys = embeddings[:, -1].double(), embeddings[:, :-1].double()
    scores = torch.einsum("ndyx,ntdvu->nyxtvu", query, keys).flatten(3) / 0.3
    shares = scores.softmax(-1).unflatten(-1, (3, 3, 5))
    expected = torch.einsum("nyxtvu,ntcvu->ncyx", shares, values.double())
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


def test_neither_encoder_nor_embeddings_see_colours(method: VideoColorization) -> None:
    views = clips(1, 2, 4, 4).flatten(0, 1)
    other = to_lab(views)
    other[:, 1:] = other[:, 1:].flip(0, 2)
    assert (from_lab(other) - views).abs().max() > 0.5
    for seen in (method.encoder, lambda x: method.embed(to_rgb(x))):
        torch.testing.assert_close(seen(views), seen(from_lab(other)), rtol=0, atol=5e-3)
    embeddings = method.embed(to_rgb(views))
    assert embeddings.shape == (2, 4, 4, 4)
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(2, 4, 4))


def test_the_colours_are_those_of_all_videos_and_part_of_the_state(build, views_of) -> None:
    first, again, other = build("video_colorization"), build("video_colorization"), build("video_colorization", seed=1)
    batches = [[clips(2, 3, 8, 8, seed=seed)] for seed in range(3)]
    first.prepare(iter(batches))
    again.prepare(iter(batches))
    assert torch.equal(first.colors, again.colors)
    assert first.colors.shape == (16, 2)
    distance = torch.cdist(COLORS + 2, first.colors).amin(1)
    assert distance.max() < 3
    other.load_state_dict(first.state_dict())
    assert torch.equal(other.colors, first.colors)
    kept = first.colors.clone()
    first(views_of(first))
    assert torch.equal(first.colors, kept)


def test_grey_videos_are_refused(build) -> None:
    method = build("video_colorization")
    lab = to_lab(clips(2, 3, 8, 8).flatten(0, 1))
    lab[:, 1:] = 0
    grey = from_lab(lab).unflatten(0, (2, 3))
    with pytest.raises(UserError, match="learns from colours, and the 4 clips of videos that it saw are all grey"):
        method.prepare(iter([[grey], [grey]]))


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 1, 3, 16, 16)])
def test_what_is_no_clip_is_refused(build, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"views must be \(N, T, 3, H, W\).*; got "):
        build("video_colorization")([torch.zeros(shape)])


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_loss_falls_over_30_steps_on_one_batch_of_8_clips(build, views_of, descend, precision) -> None:
    method = build("video_colorization")
    views = views_of(method, batch=8, size=32)
    losses = descend(method, views, precision=precision)
    assert losses[-1] < 0.9 * losses[0]


def test_a_still_clip_is_copied_as_it_is(method: VideoColorization) -> None:
    method.config = VideoColorizationConfig(colors=5, dim=4, temperature=1e-4)
    still = clips(1, 1, 3, 4).expand(-1, 3, -1, -1, -1).contiguous()
    drawn = method.pictures([still])
    assert list(drawn) == ["reference", "seen", "copied", "true"]
    assert torch.equal(drawn["true"], still[:, -1])
    assert torch.equal(drawn["reference"], still[:, 0])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"colors": 4}, "colors of video_colorization must be 5 or more; got 4"),
        ({"dim": 0}, "dim of video_colorization must be 1 or more; got 0"),
        ({"temperature": 0.0}, "temperature of video_colorization must be a finite number above 0; got 0.0"),
        ({"temperature": math.nan}, "got nan"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        VideoColorizationConfig(**settings)  # type: ignore[arg-type]
