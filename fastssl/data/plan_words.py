"""A view plan in words, for people who want to know what is done to their images."""

from __future__ import annotations

from fastssl.data.plans import IMAGENET_MEAN, IMAGENET_STD, ViewPlan


def describe(plan: ViewPlan) -> str:
    """What ``plan`` does, in words: a line for each step, in their order; of later parts, where they differ."""
    lines: list[str] = []
    first, done = _steps(plan), 0
    for part in plan.parts:
        between = "and" if part.views == 2 else "to"
        numbers = f"view {done + 1}" if part.views == 1 else f"views {done + 1} {between} {done + part.views}"
        name = f" ({part.name})" if part.name else ""
        steps = {what: how for what, how in _steps(part).items() if not done or how != first[what]}
        like = ", as view 1 but for" if done and steps else ", as view 1" if done else ""
        lines.append(f"{numbers}{name}: {part.size} x {part.size} pixels{like}")
        lines += [f"  {what}: {how or 'none'}" for what, how in steps.items() if how or done]
        done += part.views
    return "\n".join([*lines, normalization(plan)])


def _steps(plan: ViewPlan) -> dict[str, str]:
    """How a part takes each step; nothing where it does not."""
    low, high = plan.crop_scale
    sides = "a square" if plan.crop_ratio == (1, 1) else f"width to height {_span(*plan.crop_ratio)}"
    whole = "largest square's area" if plan.crop_ratio == (1, 1) else "area"
    crop = f"{_span(100 * low, 100 * high)} % of the {whole}, {sides}"
    if plan.crop_ratio == (1, 1) == plan.crop_scale:
        crop = "the largest square in the middle"
    strengths = (("brightness", plan.brightness), ("contrast", plan.contrast), ("saturation", plan.saturation))
    changes = [f"{what} x {_span(max(0.0, 1 - by), 1 + by)}" for what, by in strengths if by]
    changes += [f"hue by up to {plan.hue:.3g} turns"] if plan.hue else []
    *first, last = (str(90 * turn) for turn in plan.rot90)
    turns = " or ".join(filter(None, [", ".join(first), last]))
    return {
        "crop": f"{crop}, resized {plan.interpolation}",
        "flip": _often(plan.flip, "left to right"),
        "turn": "" if set(plan.rot90) == {0} else f"by {turns} degrees against the clock",
        "colour jitter": _often(plan.jitter if changes else 0, f"in an order drawn anew, {', '.join(changes)}"),
        "grey": _often(plan.grayscale),
        "blur": _often(plan.blur, f"sigma {_span(*plan.blur_sigma)} pixels"),
        "solarization": _often(plan.solarize, "the brighter half of the values inverted"),
    }


def _often(probability: float, how: str = "") -> str:
    share = "always" if probability == 1 else f"{100 * probability:.3g} % of the views"
    return ", ".join(filter(None, [share, how])) if probability else ""


def _span(low: float, high: float) -> str:
    return f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"


def normalization(plan: ViewPlan) -> str:
    """What becomes of values in [0, 1], in words."""
    if (plan.mean, plan.std) == (IMAGENET_MEAN, IMAGENET_STD):
        return "normalised by ImageNet's mean and standard deviation"
    if (plan.mean, plan.std) == ((0, 0, 0), (1, 1, 1)):
        return "values stay in [0, 1]"
    mean, std = (", ".join(f"{x:.3g}" for x in values) for values in (plan.mean, plan.std))
    return f"normalised by mean ({mean}) and standard deviation ({std})"
