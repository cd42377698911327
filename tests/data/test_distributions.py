"""Both engines and torchvision draw the same distributions: told by the drawn parameters, with fixed seeds.

Kolmogorov and Smirnov's test for numbers, the chi-square test for choices. What the seeds gave is not a matter of
chance any more; another seed fails in one of a thousand comparisons.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from dali_helpers import files, needs_dali
from image_files import encode
from other_libraries import load_or_skip
from PIL import Image
from scipy import stats
from torch import Tensor

from fastssl.data import views
from fastssl.data.dali import DaliLoader
from fastssl.data.images import ImageSet
from fastssl.data.loader import Loader
from fastssl.data.plans import ViewPlan, simclr
from fastssl.ops import ViewParams

COUNT, BATCH = 3000, 100
ALIKE = 1e-3  # least probability of samples as far apart as these
PLAN = replace(simclr(96), views=1, solarize=0.2, brightness=0.8, contrast=1.3, saturation=0.4, hue=0.2)
SHAPES = [(32, 32), (60, 80), (20, 100)]
FACTORS = ("brightness", "contrast", "saturation", "hue")


def by_native(plan: ViewPlan, height: int, width: int, monkeypatch: pytest.MonkeyPatch) -> ViewParams:
    """What the native loader gives to ``ops.augment`` in an epoch."""
    given: list[ViewParams] = []
    monkeypatch.setattr(views, "augment", lambda images, params, *_, **__: given.append(params) or [])
    pixels = torch.zeros(1, 3, height, width, dtype=torch.uint8).expand(COUNT, -1, -1, -1)
    data = ImageSet(pixels, None, (), tuple(map(str, range(COUNT))), "test")
    assert sum(1 for _ in Loader(data, plan, BATCH, seed=1).epoch(0)) == COUNT // BATCH
    return joined(given)


def by_dali(plan: ViewPlan, height: int, width: int, _: pytest.MonkeyPatch) -> ViewParams:
    """What DALI's loader crops and gives to ``ops.augment`` in an epoch."""
    with DaliLoader(files([encode(Image.new("RGB", (width, height)), "JPEG")] * COUNT), plan, BATCH, seed=2) as loader:
        steps = loader.schedule.chosen(0)
        return joined([loader.prepare(0, step, chosen).params for step, chosen in steps])


def joined(batches: list[ViewParams]) -> ViewParams:
    """(COUNT, ...) of the one view."""
    return ViewParams(*(torch.cat(columns, 1)[0] for columns in zip(*batches, strict=True)))


ENGINES = [pytest.param(by_native, id="native"), pytest.param(by_dali, id="dali", marks=needs_dali)]


def numbers(params: ViewParams) -> dict[str, Tensor]:
    """The drawn numbers, of samples that take the step."""
    top, left, height, width = params.crop.double().unbind(1)
    jittered = (params.factors != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(1)
    crop = {"area": height * width, "aspect": width / height, "top": top, "left": left}
    factors = dict(zip(FACTORS, params.factors[jittered].double().unbind(1), strict=True))
    return {**crop, **factors, "sigma": params.sigma[params.sigma > 0].double()}


def choices(params: ViewParams) -> dict[str, Tensor]:
    """How often each outcome was drawn."""
    jittered = (params.factors != torch.tensor([1.0, 1.0, 1.0, 0.0])).any(1)
    bits = {"flip": params.flip, "jitter": jittered, "gray": params.gray, "blur": params.sigma > 0}
    bits["solarize"] = params.solarize
    return {**{name: bit.long().bincount(minlength=2) for name, bit in bits.items()}, "order": orders(params.order)}


def orders(order: Tensor) -> Tensor:
    """(24) how often each order of the four steps was drawn."""
    counts = (order @ torch.tensor([64, 16, 4, 1])).bincount(minlength=256)
    return counts[torch.cartesian_prod(*[torch.arange(4)] * 4).sort(1).values.eq(torch.arange(4)).all(1)]


class Torchvision:
    """The same steps by torchvision v2's transforms, and what each of them draws."""

    def __init__(self, plan: ViewPlan) -> None:
        v2 = load_or_skip("torchvision.transforms.v2")
        self.crop = v2.RandomResizedCrop(8, plan.crop_scale, plan.crop_ratio)
        self.jitter = v2.ColorJitter(plan.brightness, plan.contrast, plan.saturation, plan.hue)
        self.blur = v2.GaussianBlur(9, plan.blur_sigma)
        self.steps = {
            "flip": v2.RandomHorizontalFlip(plan.flip),
            "gray": v2.RandomGrayscale(plan.grayscale),
            "solarize": v2.RandomSolarize(128, plan.solarize),
            "jitter": v2.RandomApply([v2.RandomInvert(1.0)], plan.jitter),  # whether, whatever is applied
            "blur": v2.RandomApply([v2.RandomInvert(1.0)], plan.blur),
        }

    def numbers(self, height: int, width: int) -> dict[str, Tensor]:
        pixels = [torch.empty(3, height, width, dtype=torch.uint8)]
        crops = self._drawn(self.crop, pixels, ["top", "left", "height", "width"])
        factors = self._drawn(self.jitter, pixels, [f"{name}_factor" for name in FACTORS])
        sigma = torch.tensor([self.blur.make_params(pixels)["sigma"][0] for _ in range(COUNT)]).double()
        top, left, tall, wide = crops.unbind(1)
        crop = {"area": tall * wide, "aspect": wide / tall, "top": top, "left": left}
        return {**crop, **dict(zip(FACTORS, factors.unbind(1), strict=True)), "sigma": sigma}

    def choices(self) -> dict[str, Tensor]:
        pixels = [torch.empty(3, 4, 4, dtype=torch.uint8)]
        order = torch.stack([self.jitter.make_params(pixels)["fn_idx"] for _ in range(COUNT)])
        ramp = torch.tensor([[[10, 200]], [[60, 90]], [[0, 30]]], dtype=torch.uint8)
        bits = {
            name: torch.tensor([not torch.equal(step(ramp), ramp) for _ in range(COUNT)])
            for name, step in self.steps.items()
        }
        return {**{name: bit.long().bincount(minlength=2) for name, bit in bits.items()}, "order": orders(order)}

    @staticmethod
    def _drawn(transform: Any, pixels: list[Tensor], names: list[str]) -> Tensor:
        drawn = [transform.make_params(pixels) for _ in range(COUNT)]
        return torch.tensor([[one[name] for name in names] for one in drawn], dtype=torch.float64)


def unlike(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, float]:
    """Of numbers that are unlikely to be drawn alike, how unlikely."""
    assert a.keys() == b.keys()
    likely = {name: float(stats.ks_2samp(a[name].numpy(), b[name].numpy()).pvalue) for name in a}
    return {name: p for name, p in likely.items() if p < ALIKE}


def unlike_choices(a: dict[str, Tensor], b: dict[str, Tensor]) -> dict[str, float]:
    """Of choices likewise."""
    assert a.keys() == b.keys()
    likely = {name: float(stats.chi2_contingency(torch.stack([a[name], b[name]]).numpy()).pvalue) for name in a}
    return {name: p for name, p in likely.items() if p < ALIKE}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_numbers_are_drawn_as_torchvision_draws_them(engine, height: int, width: int, monkeypatch) -> None:
    theirs = Torchvision(PLAN)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        assert not unlike(numbers(engine(PLAN, height, width, monkeypatch)), theirs.numbers(height, width))


@pytest.mark.parametrize("engine", ENGINES)
def test_choices_are_made_as_torchvision_makes_them(engine, monkeypatch) -> None:
    theirs = Torchvision(PLAN)
    with torch.random.fork_rng():
        torch.manual_seed(4)
        assert not unlike_choices(choices(engine(PLAN, 32, 32, monkeypatch)), theirs.choices())


@needs_dali
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_both_engines_draw_alike(height: int, width: int, monkeypatch) -> None:
    dali, native = (make(PLAN, height, width, monkeypatch) for make in (by_dali, by_native))
    assert not torch.equal(dali.crop, native.crop)  # the seeds differ
    assert not unlike(numbers(dali), numbers(native))
    assert not unlike_choices(choices(dali), choices(native))


@pytest.mark.parametrize("engine", ENGINES)
def test_the_laws_are_those_that_the_plan_names(engine, monkeypatch) -> None:
    drawn = engine(PLAN, 60, 80, monkeypatch)
    found, counted = numbers(drawn), choices(drawn)
    laws = {name: (max(0.0, 1 - getattr(PLAN, name)), 1 + getattr(PLAN, name)) for name in FACTORS[:3]}
    laws |= {"hue": (-PLAN.hue, PLAN.hue), "sigma": PLAN.blur_sigma}
    for name, (low, high) in laws.items():
        assert stats.kstest(found[name].numpy(), stats.uniform(low, high - low).cdf).pvalue > ALIKE, name
    shares = {"flip": PLAN.flip, "jitter": PLAN.jitter, "gray": PLAN.grayscale, "blur": PLAN.blur}
    for name, share in {**shares, "solarize": PLAN.solarize}.items():
        assert stats.binomtest(int(counted[name][1]), COUNT, share).pvalue > ALIKE, name
    assert len(counted["order"]) == 24
    assert stats.chisquare(counted["order"].numpy()).pvalue > ALIKE


def test_small_differences_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    other = replace(PLAN, crop_scale=(0.14, 1.0), crop_ratio=(0.7, 1.4), brightness=0.7, contrast=1.5, saturation=0.5)
    other = replace(other, hue=0.17, blur_sigma=(0.1, 2.2), flip=0.57, jitter=0.85, grayscale=0.25, blur=0.57)
    other = replace(other, solarize=0.25)
    a, b = by_native(PLAN, 60, 80, monkeypatch), by_native(other, 60, 80, monkeypatch)
    assert unlike(numbers(a), numbers(b)).keys() >= {"area", "aspect", *FACTORS, "sigma"}
    assert unlike_choices(choices(a), choices(b)).keys() == {"flip", "jitter", "gray", "blur", "solarize"}
    lopsided = b._replace(order=torch.where(torch.arange(COUNT)[:, None] % 5 == 0, torch.arange(4), b.order))
    assert "order" in unlike_choices(choices(a), choices(lopsided))
