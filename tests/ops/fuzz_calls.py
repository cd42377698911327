"""A valid call of every op, drawn at random, and how far from the exact result one may be: the table of the fuzz."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from fuzz_helpers import FLOATS, Drawn, Terms, tensors_of
from fuzz_views import augment, viewed
from torch import Tensor

Arguments = dict[str, Any]


@dataclass(frozen=True)
class Fuzzed:
    """What the fuzz knows of an op.

    ``arguments`` draws a valid call. ``errors`` tells, of its arguments in float64, what one rounding may come to in
    the results and in the gradients, the ``Terms`` of which are compared in the norm; None if results must be equal.
    ``differentiable`` name arguments that may ask for a gradient, ``written`` those that the op writes. ``agree``
    compares results that cannot be compared number by number.
    """

    arguments: Callable[[Drawn], Arguments]
    errors: Callable[[Arguments], tuple[float, float | Terms]] | None
    differentiable: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    agree: Callable[[Arguments, dict[str, Tensor]], None] | None = None


def largest(*values: object) -> float:
    """The largest magnitude in tensors, lists of them, or numbers."""
    found = [float(x.double().abs().max()) for value in values for x in tensors_of(value) if x.numel()]
    return max([*found, *(abs(value) for value in values if isinstance(value, float))], default=0.0)


def _longest(*matrices: Tensor | None) -> float:
    return max(float(x.norm(dim=1).max()) if x is not None and len(x) else 0.0 for x in matrices)


def _contrast(
    queries: Tensor, *others: Tensor | None, scale: float, bias: float = 0.0, weights: float = 1.0
) -> tuple[float, Terms]:
    """Of a loss in which the weights of each query's products add up to ``weights``, of their mean."""
    longest = _longest(queries, *others)
    logit = 1 + scale * longest**2 + abs(bias)
    rows = weights * scale * longest / len(queries) ** 0.5
    scalars = {
        "temperature": weights * longest**2 * scale**2,
        "logit_scale": weights * longest**2,
        "logit_bias": weights,
    }
    return weights * logit, Terms(logit, scalars, rows)


def _pairs(drawn: Drawn, names: tuple[str, str]) -> Arguments:
    n, d, dtype = drawn.size(), drawn.size(), drawn.dtype()
    return {name: drawn.rows(n, d, dtype) for name in names}


def _nt_xent(drawn: Drawn) -> Arguments:
    return {**_pairs(drawn, ("z0", "z1")), "temperature": drawn.scale(0.02, 5)}


def _clip(drawn: Drawn) -> Arguments:
    return {**_pairs(drawn, ("a", "b")), "logit_scale": drawn.scale(-5, 50)}


def _siglip(drawn: Drawn) -> Arguments:
    return {**_clip(drawn), "logit_bias": drawn.scale(-12, 5)}


def _info_nce(drawn: Drawn) -> Arguments:
    n, d, dtype = drawn.size(), drawn.size(), drawn.dtype()
    m = drawn.size(least=n)
    call: Arguments = {"queries": drawn.rows(n, d, dtype), "keys": drawn.rows(m, d, dtype)}
    targets = torch.arange(n)
    if drawn.chance():
        call["targets"] = targets = drawn.integers((n,), m)
    if m > 1 and drawn.chance():
        call["exclude"] = (targets + 1 + drawn.integers((n,), m - 1)) % m  # none is its row's target
    if drawn.chance():
        call["negatives"] = drawn.rows(drawn.size(least=0), d, drawn.dtype())
    return {**call, "temperature": drawn.scale(0.02, 5), "reduction": drawn.pick(["mean", "sum", "none"])}


def _siglip_errors(call: Arguments) -> tuple[float, Terms]:
    a, b, scale, bias = call["a"], call["b"], float(call["logit_scale"]), float(call["logit_bias"])
    logits = scale * a @ b.T + bias
    logits.diagonal().neg_()
    return _contrast(a, b, scale=abs(scale), bias=bias, weights=float(logits.sigmoid().sum(1).max()) + 1)


def _info_nce_errors(call: Arguments) -> tuple[float, Terms]:
    weights = 1.0 if call["reduction"] == "mean" else 2.0 * len(call["queries"])
    return _contrast(
        call["queries"], call["keys"], call.get("negatives"), scale=1 / float(call["temperature"]), weights=weights
    )


def _queue_info_nce(drawn: Drawn) -> Arguments:
    call = _pairs(drawn, ("query", "key"))
    queue = drawn.rows(drawn.size(least=0), call["key"].shape[1], drawn.dtype())
    return {**call, "queue": queue, "temperature": drawn.number(0.02, 5)}


def _enqueue(drawn: Drawn) -> Arguments:
    length, d = drawn.size(), drawn.size()
    cursor = torch.tensor(drawn.pick([0, 1, length - 1, length, -1, 2**62, -(2**63)]))
    return {
        "queue": drawn.numbers((length, d), drawn.dtype(), written=True),
        "cursor": cursor if drawn.chance() else cursor[None],
        "keys": drawn.rows(drawn.size(least=0), d, drawn.dtype()),
        "normalize": drawn.chance(),
    }


def _ema_update(drawn: Drawn) -> Arguments:
    shapes = [
        tuple(drawn.size(least=0, most=17) for _ in range(drawn.pick([1, 2, 0, 4])))
        for _ in range(drawn.pick([1, 3, 0]))
    ]
    targets, sources, copies = [], [], []
    for shape in shapes:
        if drawn.chance():
            targets.append(drawn.numbers(shape, drawn.dtype(), written=True))
            sources.append(drawn.numbers(shape, drawn.dtype()))
            copies.append(drawn.numbers(shape, drawn.dtype(), written=True))
        else:
            dtype = drawn.pick([torch.int64, torch.bool, torch.uint8, torch.int16])
            plain = [torch.randint(2, shape).to(dtype) for _ in range(3)]
            for x, into in zip(plain, (targets, sources, copies), strict=True):
                into.append(drawn.laid_out(x, written=True))
    call: Arguments = {"targets": targets, "sources": sources, "momentum": drawn.number(0, 1)}
    return {**call, "copies": copies} if drawn.chance() else call


def _averaged(call: Arguments, got: dict[str, Tensor]) -> None:
    """Averages rounded once, integers taken over, and copies that are the written targets cast."""
    momentum = call["momentum"]
    for i, (target, source) in enumerate(zip(call["targets"], call["sources"], strict=True)):
        found = got[f"targets {i}"]
        if found.is_floating_point():
            exact = {target.dtype, source.dtype} == {torch.float64}
            rounding = 64 * torch.finfo(torch.float64 if exact else torch.float32).eps * largest(target, source)
            finfo = torch.finfo(found.dtype)
            want = momentum * target.double() + (1 - momentum) * source.double()
            torch.testing.assert_close(found.double(), want, rtol=2 * finfo.eps, atol=rounding + finfo.tiny)
        else:
            assert torch.equal(found, source.to(found.dtype))
        if "copies" in call:
            assert torch.equal(got[f"copies {i}"], found.to(call["copies"][i].dtype))


def _random_masking(drawn: Drawn) -> Arguments:
    batch, length = drawn.size(), drawn.size()
    noise = drawn.numbers((batch, length), torch.float32, 0, drawn.pick([1.0, 5.0]))
    return {"batch": batch, "length": length, "ratio": drawn.number(0, (length - 1) / length), "noise": noise}


def _block_masking(drawn: Drawn) -> Arguments:
    batch, height, width = drawn.size(most=17), drawn.size(most=17), drawn.size(most=131)
    least = drawn.size()
    masked = drawn.size(least=0) % (height * width + 1)
    return {
        "batch": batch,
        "grid": (height, width),
        "masked": drawn.integers((batch,), height * width + 1) if drawn.chance() else masked,
        "min_block": least,
        "max_block": drawn.pick([None, least, least + 7]),
        "aspect": (low := drawn.number(1e-3, 4), low * drawn.number(1, 50)),
        "noise": drawn.numbers((batch, 128 + height * width), torch.float32, 0, drawn.pick([1.0, 5.0])),
    }


def _position_embedding(drawn: Drawn, length: int, d: int) -> Arguments:
    if drawn.chance():
        return {}
    pos = drawn.numbers((length, d), drawn.dtype())
    return {"pos_embed": pos if drawn.chance() else pos[None]}


def _take_patches(drawn: Drawn) -> Arguments:
    batch, length, d = drawn.size(least=0, most=17), drawn.size(least=0), drawn.size(least=0)
    x = drawn.numbers((batch, length, d), drawn.dtype())
    kept = drawn.size(least=0) if length else 0
    return {"x": x, "ids": drawn.integers((batch, kept), length), **_position_embedding(drawn, length, d)}


def _restore_patches(drawn: Drawn) -> Arguments:
    batch, length, d = drawn.size(least=0, most=17), drawn.size(least=0), drawn.size(least=0)
    ids = drawn.permutations(batch, length) if drawn.chance() else drawn.integers((batch, length), length)
    return {
        "x": drawn.numbers((batch, drawn.size(least=0, most=length), d), drawn.dtype()),
        "ids_restore": ids,
        "mask_token": drawn.numbers((1, 1, d) if drawn.chance() else (d,), drawn.dtype()),
        **_position_embedding(drawn, length, d),
    }


def _patches_errors(call: Arguments) -> tuple[float, float]:
    size = call["x"].shape[0] * max(call["x"].shape[1], call.get("ids_restore", call.get("ids")).shape[1])
    return largest(*call.values()), 2.0 * size + 1


def _image(drawn: Drawn, channels: int, dtype: torch.dtype, low: float, high: float) -> Tensor:
    leading = [drawn.size(most=4) for _ in range(drawn.pick([1, 0, 2]))]
    return drawn.numbers((*leading, channels, drawn.size(most=33), drawn.size(most=33)), dtype, low, high)


def _chroma(drawn: Drawn, channels: int, low: float, high: float) -> Tensor:
    shape = (drawn.size(most=4), channels, drawn.size(most=33), drawn.size(most=33))
    return drawn.numbers(shape, drawn.dtype(), low, high)


def _encode_ab(drawn: Drawn) -> Arguments:
    spread = drawn.pick([100.0, 1.0, 0.0])
    bins = Drawn(drawn.draw, wild=False).numbers((drawn.size(least=5), 2), drawn.dtype(), -spread, spread)
    return {"ab": _chroma(drawn, 2, -120, 120), "bins": bins}


def _nearest_bins(call: Arguments, got: dict[str, Tensor]) -> None:
    """The ids may differ where two bins are equally near to rounding, their distances and weights may not."""
    ab, bins = call["ab"].double(), call["bins"].double()
    ids, weights = got["result 0"], got["result 1"]
    distances = (ab.movedim(1, -1)[..., None, :] - bins).square().sum(-1).movedim(-1, 1)
    want = distances.sort(dim=1).values[:, :5]
    eps = torch.finfo(weights.dtype).eps
    rounding = 32 * eps * (largest(ab) + largest(bins)) ** 2
    assert all(len(set(column)) == 5 for column in ids.movedim(1, -1).reshape(-1, 5).tolist())
    torch.testing.assert_close(distances.gather(1, ids), want, rtol=0, atol=rounding)
    torch.testing.assert_close(weights.double(), (-want / 50).softmax(1), rtol=0, atol=rounding / 25 + 32 * eps)


def _decode_ab(drawn: Drawn) -> Arguments:
    count = drawn.size()
    bins = drawn.numbers((count, 2), drawn.dtype(), -100, 100)
    return {"logits": _chroma(drawn, count, -9, 9), "bins": bins, "temperature": drawn.number(0.05, 3)}


def _distillation(drawn: Drawn) -> Arguments:
    students, batch, prototypes = drawn.size(most=8), drawn.size(most=17), drawn.size()
    teachers, dtype = drawn.size(least=2 if students == 1 else 1, most=4), drawn.dtype()
    shape = (teachers, batch, prototypes)
    of_teacher = drawn.pick(FLOATS if dtype == torch.float64 else FLOATS[:3])
    call = {"student": drawn.numbers((students, batch, prototypes), dtype), "student_temp": drawn.number(0.05, 2)}
    if drawn.chance():
        return {**call, "teacher": drawn.numbers(shape, of_teacher, 0, 1), "teacher_temp": None}
    center = {"center": drawn.numbers((prototypes,), drawn.dtype())} if drawn.chance() else {}
    return {**call, **center, "teacher": drawn.numbers(shape, of_teacher), "teacher_temp": drawn.number(0.03, 2)}


def _distillation_errors(call: Arguments) -> tuple[float, float]:
    student = largest(call["student"]) / call["student_temp"] + 1
    mass = float(call["teacher"].sum(2).max()) if call["teacher_temp"] is None else 1.0
    teacher = (
        1.0 if call["teacher_temp"] is None else 2 * largest(call["teacher"], call.get("center")) / call["teacher_temp"]
    )
    error = 8 * (1 + mass) * student * (teacher + 1)
    return error, error / call["student_temp"]


def _sinkhorn(drawn: Drawn) -> Arguments:
    scores = drawn.numbers((drawn.size(), drawn.size()), drawn.dtype(), -1, 1)
    return {"scores": scores, "temp": drawn.number(0.04, 2), "iterations": drawn.pick([1, 2, 3, 5])}


def _update_center(drawn: Drawn) -> Arguments:
    dtype, d = drawn.pick([torch.float32, torch.float64]), drawn.size()
    rows = (drawn.size(), d) if drawn.chance() else (drawn.size(most=4), drawn.size(most=17), d)
    teacher = drawn.numbers(rows, drawn.pick(FLOATS if dtype == torch.float64 else FLOATS[:3]))
    return {"center": drawn.numbers((d,), dtype, written=True), "teacher": teacher, "momentum": drawn.number(0, 1)}


def _knn(drawn: Drawn) -> Arguments:
    queries, size, d, dtype, classes = drawn.size(), drawn.size(), drawn.size(), drawn.dtype(), drawn.size()
    return {
        "features": drawn.rows(queries, d, dtype),
        "bank": drawn.rows(size, d, dtype),
        "labels": drawn.integers((size,), classes),
        "k": drawn.size(most=size),
        "temperature": drawn.number(0.05, 1),
        "num_classes": classes,
    }


def _votes(call: Arguments, got: dict[str, Tensor]) -> None:
    """Each query's, where rounding cannot change which k rows are its nearest."""
    unit = torch.nn.functional.normalize
    similarity = unit(call["features"].double(), dim=1) @ unit(call["bank"].double(), dim=1).T
    scores, k = got["result 0"], call["k"]
    ranked, ids = similarity.sort(dim=1, descending=True)
    weights = ((ranked[:, :k] - ranked[:, :1]) / call["temperature"]).exp()
    want = torch.zeros(scores.shape, dtype=torch.float64).scatter_add_(1, call["labels"][ids[:, :k]], weights)
    want /= want.sum(1, keepdim=True)
    decided = ranked[:, k - 1] - ranked[:, k] > 1e-5 if k < ranked.shape[1] else torch.full((len(want),), True)
    torch.testing.assert_close(scores.double()[decided], want[decided], rtol=0, atol=1e-4)
    torch.testing.assert_close(scores.sum(1), torch.ones_like(scores[:, 0]), rtol=0, atol=1e-4)


def _propagate(drawn: Drawn) -> Arguments:
    frames, d, classes = drawn.size(most=3), drawn.size(most=67), drawn.size(most=8)
    height, width, dtype = drawn.size(most=8), drawn.size(most=17), drawn.dtype()
    return {
        "target": drawn.numbers((d, height, width), dtype),
        "context": drawn.numbers((frames, d, height, width), dtype),
        "labels": drawn.numbers((frames, classes, height, width), drawn.dtype()),
        "radius": drawn.pick([None, 0, 1, 3, 2**62, 2**63 - 1]),
        "k": drawn.size(most=frames * height * width),
        "temperature": drawn.number(0.05, 1),
    }


def _propagated(call: Arguments, got: dict[str, Tensor]) -> None:
    """Each pixel's label, where rounding cannot change which k pixels are its nearest."""
    (frames, _, height, width), k = call["context"].shape, call["k"]
    unit = torch.nn.functional.normalize
    queries = unit(call["target"].double().flatten(1), dim=0).T
    keys = unit(call["context"].double().movedim(1, 0).flatten(1), dim=0)
    values = call["labels"].double().movedim(1, 0).flatten(1)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    distance = torch.maximum((y.flatten()[:, None] - y.flatten()).abs(), (x.flatten()[:, None] - x.flatten()).abs())
    outside = distance.repeat(1, frames) > (math.inf if call["radius"] is None else call["radius"])
    ranked, pixels = (queries @ keys).masked_fill(outside, -math.inf).sort(dim=1, descending=True)
    weights = ((ranked[:, :k] - ranked[:, :1]) / call["temperature"]).softmax(1)
    want = (weights * values[:, pixels[:, :k]]).sum(2)
    gap = ranked[:, k - 1] - ranked[:, k] if k < ranked.shape[1] else torch.full((len(ranked),), math.inf)
    decided = ~(gap <= 1e-5)  # -inf less -inf: fewer than k are in reach
    label = got["result 0"].double().flatten(1)
    torch.testing.assert_close(label[:, decided], want[:, decided], rtol=0, atol=1e-4 * (1 + largest(values)))


def _tiles(drawn: Drawn) -> Arguments:
    rows, columns = drawn.size(most=4), drawn.size(most=4)
    n, cell = drawn.size(most=5), (drawn.size(most=17), drawn.size(most=33))
    pixels = (rows * cell[0] + drawn.pick(range(rows)), columns * cell[1] + drawn.pick(range(columns)))
    size = tuple(drawn.size(most=side) for side in cell)
    call: Arguments = {
        "images": drawn.numbers((n, drawn.size(most=4), *pixels), drawn.dtype()),
        "grid": (rows, columns) if rows != columns or drawn.chance() else rows,
        "size": size,
        "normalize": drawn.chance(),
    }
    if drawn.chance():
        shape = (drawn.size(most=13),) if drawn.chance() else (n, drawn.size(most=13))
        call["order"] = drawn.integers(shape, rows * columns)
    room = [side - of + 1 for side, of in zip(cell, size, strict=True)]
    offsets = torch.stack([drawn.integers((n, rows * columns), limit) for limit in room], 2)
    return {**call, "offsets": drawn.laid_out(offsets)}


CALLS: dict[str, Fuzzed] = {
    "augment": Fuzzed(augment, None, agree=viewed),
    "block_masking": Fuzzed(_block_masking, None),
    "clip_loss": Fuzzed(
        _clip, lambda c: _contrast(c["a"], c["b"], scale=abs(float(c["logit_scale"]))), ("a", "b", "logit_scale")
    ),
    "decode_ab": Fuzzed(
        _decode_ab, lambda c: ((largest(c["logits"]) / c["temperature"] + 1) * largest(c["bins"]), 0.0)
    ),
    "distillation_loss": Fuzzed(_distillation, _distillation_errors, ("student",)),
    "ema_update_": Fuzzed(_ema_update, None, written=("targets", "copies"), agree=_averaged),
    "encode_ab": Fuzzed(_encode_ab, None, agree=_nearest_bins),
    "enqueue_": Fuzzed(_enqueue, lambda c: (1 + largest(c["keys"]), 0.0), written=("queue", "cursor")),
    "info_nce": Fuzzed(_info_nce, _info_nce_errors, ("queries", "keys", "temperature")),
    "knn_classify": Fuzzed(_knn, None, agree=_votes),
    "lab_to_rgb": Fuzzed(lambda drawn: {"lab": _image(drawn, 3, drawn.dtype(), -50, 100)}, lambda c: (300.0, 0.0)),
    "nt_xent": Fuzzed(
        _nt_xent, lambda c: _contrast(c["z0"], c["z1"], scale=1 / float(c["temperature"])), ("z0", "z1", "temperature")
    ),
    "propagate_labels": Fuzzed(_propagate, None, agree=_propagated),
    "queue_info_nce": Fuzzed(
        _queue_info_nce,
        lambda c: _contrast(c["query"], c["key"], c["queue"], scale=1 / c["temperature"]),
        ("query", "key"),
    ),
    "random_masking": Fuzzed(_random_masking, None),
    "restore_patches": Fuzzed(_restore_patches, _patches_errors, ("x", "mask_token", "pos_embed")),
    "rgb_to_lab": Fuzzed(lambda drawn: {"rgb": _image(drawn, 3, drawn.dtype(), 0, 1)}, lambda c: (1000.0, 0.0)),
    "siglip_loss": Fuzzed(
        _siglip,
        _siglip_errors,
        ("a", "b", "logit_scale", "logit_bias"),
    ),
    "sinkhorn_knopp": Fuzzed(_sinkhorn, lambda c: (4 * largest(c["scores"]) / c["temp"] + c["iterations"] + 1, 0.0)),
    "take_patches": Fuzzed(_take_patches, _patches_errors, ("x", "pos_embed")),
    "tiles": Fuzzed(_tiles, lambda c: (400 * largest(c["images"]) + 4 if c["normalize"] else 0.0, 0.0)),
    "update_center_": Fuzzed(_update_center, lambda c: (largest(c["center"], c["teacher"]), 0.0), written=("center",)),
}
