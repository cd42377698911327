"""Label propagation through small videos, and its scores counted by hand."""

from __future__ import annotations

from dataclasses import make_dataclass
from pathlib import Path

import pytest
import torch
from davis_files import COLOURS, HEIGHT, WIDTH, numbers, pixels, square, write_davis
from torch import Tensor, nn

from fastssl.data.davis import open_davis
from fastssl.errors import UserError
from fastssl.eval.tracking import UNMOVED, TrackConfig, evaluate_tracking, score, track
from fastssl.methods import Method
from fastssl.ops import propagate_labels


class Seen(Method):
    """What an encoder of no parameters sees: the colours around grey, averaged over 2 x 2 pixels."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__(nn.Identity(), make_dataclass("NoSettings", ())())
        self.gain = gain

    def embed(self, frames: Tensor) -> Tensor:
        maps = torch.nn.functional.avg_pool2d(frames - 0.47, 2, ceil_mode=True)
        constant = torch.ones_like(maps[:, :1])  # without it all greys of one hue are alike
        return self.gain * torch.cat([maps, 0.1 * constant], 1)


def video(frames: int, objects: int) -> tuple[list[Tensor], Tensor]:
    shown = [torch.from_numpy(pixels(i, objects)) for i in range(frames)]
    return shown, torch.stack([torch.from_numpy(numbers(i, objects)) for i in range(frames)])


def test_objects_are_followed() -> None:
    frames, truth = video(8, 2)
    masks = torch.stack(list(track(frames, truth[0].long(), Seen().embed, TrackConfig(radius=6))))
    assert masks.shape == truth.shape
    assert masks.dtype == torch.int64
    assert torch.equal(masks[0].byte(), truth[0])
    for found in score("squares", masks.byte(), truth):
        assert found.j > 0.9
        assert found.f > 0.95
    unmoved = [found.j for found in score("squares", truth[:1].expand_as(truth), truth)]
    assert max(unmoved) < 0.8


def test_each_frame_is_compared_with_the_first_and_the_last_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []

    def counted(target: Tensor, context: Tensor, labels: Tensor, **settings: object) -> Tensor:
        lengths.append(len(context))
        assert len(labels) == len(context)
        assert torch.equal(context[0], first)
        return propagate_labels(target, context, labels, **settings)  # type: ignore[arg-type]

    monkeypatch.setattr("fastssl.eval.tracking.propagate_labels", counted)
    frames, truth = video(6, 1)
    first = Seen().embed(frames[0].movedim(2, 0)[None].float() / 255)[0]
    for context, expected in ((0, [1, 1, 1, 1, 1]), (3, [1, 2, 3, 4, 4])):
        lengths.clear()
        list(track(frames, truth[0].long(), Seen().embed, TrackConfig(context=context, k=4)))
        assert lengths == expected


def test_frames_are_reduced_and_masks_are_not() -> None:
    frames, truth = video(3, 1)
    sizes = []

    def features(images: Tensor) -> Tensor:
        sizes.append(tuple(images.shape))
        return Seen().embed(images)

    masks = list(track(frames, truth[0].long(), features, TrackConfig(side=24), multiple=5))
    assert sizes == [(1, 3, 25, 30)] * 3  # 24 x 32, in whole patches of 5
    assert masks[2].shape == (HEIGHT, WIDTH)


def test_j_of_a_mask_that_stays_is_counted_by_hand() -> None:
    """The square of 16 moves by 2: after i frames 16 - 2 i of its columns are common, of 16 + 2 i.

    First and last frame do not count.
    """
    _, truth = video(4, 1)
    (found,) = score("square", truth[:1].expand_as(truth), truth)
    assert (found.sequence, found.object) == ("square", 1)
    assert found.j == pytest.approx((14 / 18 + 12 / 20) / 2, rel=1e-12)


def test_void_is_neither_object_nor_scored() -> None:
    _, truth = video(4, 1)
    masks = truth.clone()
    truth[:, 0, :5] = 255
    masks[:, 0, :5] = 1
    (found,) = score("square", masks, truth)
    assert (found.j, found.f) == (1, 1)


def test_the_objects_are_those_of_the_first_frame() -> None:
    _, truth = video(4, 2)
    truth[1:][truth[1:] == 2] = 0  # out of sight
    both = score("squares", truth, truth)
    assert [found.object for found in both] == [1, 2]
    assert [(found.j, found.f) for found in both] == [(1, 1), (1, 1)]
    truth[0][truth[0] == 2] = 0
    assert len(score("squares", truth, truth)) == 1


def test_scores_are_means_over_objects_beside_two_that_know_nothing(tmp_path: Path) -> None:
    davis = open_davis(str(write_davis(tmp_path, {"one": (5, 1), "two": (4, 2), "short": (2, 1)})))
    done, told = [], []
    scores = evaluate_tracking(
        Seen(),
        Seen(0.0),
        davis,
        config=TrackConfig(radius=6),
        progress=lambda *at: done.append(at),
        watch=lambda name, frames, masks: told.append((name, frames.shape, masks.shape)),
    )
    assert [row.features for row in scores.rows] == ["trained", "random initialisation", "first mask, unmoved"]
    assert (scores.sequences, scores.frames) == (2, 3 + 2)
    assert [(item.name, item.reason[:24]) for item in scores.skipped] == [("short", "2 of its frames have a m")]
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert told[0] == ("one", (5, HEIGHT, WIDTH, 3), (5, HEIGHT, WIDTH))
    unmoved = scores.row(UNMOVED)
    moved = [2 * i for i in (1, 2, 3)]
    first = sum((16 - x) / (16 + x) for x in moved) / 3
    assert unmoved.objects[0].j == pytest.approx(first, rel=1e-12)
    assert unmoved.j == pytest.approx(sum(item.j for item in unmoved.objects) / 3, rel=1e-12)
    assert unmoved.jf == pytest.approx((unmoved.j + unmoved.f) / 2, rel=1e-12)
    assert scores.row("trained").jf > 0.9 > unmoved.jf
    table = scores.to_dict()
    assert table["rows"][2]["jf"] == unmoved.jf
    assert table["config"]["radius"] == 6


def test_masks_that_do_not_fit_their_frames_are_named(tmp_path: Path) -> None:
    root = write_davis(tmp_path, {"one": (3, 1), "two": (3, 0)})
    for path in (root / "Annotations/one").iterdir():
        path.write_bytes((root / "Annotations/one/00000.png").read_bytes())
    davis = open_davis(str(root))
    with pytest.raises(UserError, match=r"none of the 1 sequences can be scored .*'two': no object in its first mask"):
        evaluate_tracking(Seen(), Seen(), open_davis(str(root), ["two"]))
    assert evaluate_tracking(Seen(), Seen(), davis).sequences == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"context": -1}, "context of tracking must be 0 or more; got -1"),
        ({"k": 0}, "k of tracking must be 1 or more"),
        ({"radius": -1}, "radius of tracking must be 0 or more"),
        ({"side": 4}, "side of tracking must be 8 or more"),
        ({"temperature": 0.0}, "temperature of tracking must be a finite number above 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrackConfig(**settings)  # type: ignore[arg-type]


def test_the_squares_are_where_the_tests_say() -> None:
    assert pixels(2, 1)[square(2, 1)].reshape(-1, 3).mean(0) == pytest.approx(COLOURS[0], abs=20)
