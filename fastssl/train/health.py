"""Signs of a collapse: features that are alike for all images, or a teacher that says the same of all."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastssl.eval.spread import effective_rank, feature_std
from fastssl.methods import Method
from fastssl.train.compiled import CALLED

EVERY = 50  # steps between two looks
ROWS = 512  # of features at most, for the singular values take time with their cube
LOOKS = 3  # in a row that must show a collapse: a network often begins near one, and leaves it

LEAST_STD = 0.02  # a mean cosine of 0.9996
LEAST_RANK = {"output": 2.0, "feature": 1.2}  # features of images begin nearly alike, and keep a mean
LEAST_INFORMATION = 1e-4  # nats; a teacher that will learn may tell a thousandth at first
SURE = 0.5  # nats of entropy below which a teacher has one output


class CollapseWatch:
    """Looks every `EVERY` steps at the features that a method computes anyway; needs no forward pass of its own."""

    def __init__(self, method: Method) -> None:
        self._method = method
        self._rows: dict[str, list[Tensor]] = {}
        self._bad_looks = 0
        self._warned = False

    @contextmanager
    def forward(self, step: int) -> Iterator[None]:
        """Around the method's forward pass of ``step``, from 0."""
        self._rows = {}
        self._method.watched = step % EVERY == 0
        if not self._method.watched:
            yield
            return
        encoder, compared = self._method.encoder, self._method.compared
        with ExitStack() as stack:
            for name in CALLED:
                if hasattr(encoder, name):
                    stack.enter_context(_heard(encoder, name, partial(self._keep, name)))
            if compared is not None:
                output = self._method.get_submodule(compared)
                stack.enter_context(_heard(output, "forward", partial(self._keep, "output")))
            yield

    def _keep(self, name: str, output: Tensor) -> None:
        kept = self._rows.setdefault(name, [])
        wanted = ROWS - sum(map(len, kept))
        if wanted > 0:
            kept.append(output.detach()[:wanted])

    def signs(self) -> dict[str, float]:
        """Spread and effective rank of the features of the step just done, and of what is compared, if it was one to
        look at: ``feature_std``, ``feature_rank``, ``output_std``, ``output_rank``.

        Of a method that asks its encoder for maps or tokens, as those that predict pixels, features are the mean over
        their positions.
        """
        called = next((name for name in CALLED if name in self._rows), "")  # those that call the others come first
        found: dict[str, float] = {}
        for name, source in (("feature", called), ("output", "output")):
            if source not in self._rows:
                continue
            rows = torch.cat(self._rows[source]).float()
            centred = rows - rows.mean(0) if name == "output" else rows  # a head without normalisation adds one vector
            found |= {f"{name}_std": feature_std(rows), f"{name}_rank": effective_rank(centred)}
        self._rows = {}
        return found

    def warning(self, step: int, signs: Mapping[str, float]) -> str | None:
        """What has collapsed and the likely cause, once, if ``signs`` of ``step``, from 1, are not the first to say so.

        Args:
            signs: what was logged of the step.
        """
        if self._warned or not self._method.watched:
            return None
        found = _collapsed(signs)
        self._bad_looks = self._bad_looks + 1 if found else 0
        if found is None or self._bad_looks < LOOKS:
            return None
        self._warned = True
        what, told = found
        causes = self._method.collapse_causes
        return f"training has collapsed at step {step}: {told}. Likely {causes.get(what, causes['features'])}"


@contextmanager
def _heard(module: nn.Module, name: str, hear: Callable[[Tensor], None]) -> Iterator[None]:
    """Tells ``hear`` what each call of the module's function ``name`` returns, a row for each sample."""
    before = vars(module).get(name)
    own = getattr(module, name)

    def call(*args: Any, **kwargs: Any) -> Any:
        found = own(*args, **kwargs)
        hear(_rows(found))
        return found

    vars(module)[name] = call
    try:
        yield
    finally:
        del vars(module)[name]
        if before is not None:
            vars(module)[name] = before


@torch.no_grad()
def _rows(found: Tensor | tuple[Tensor, ...]) -> Tensor:
    """(N, D) of vectors (N, D), maps (N, D, h, w), tokens (N, T, D), or of several of those."""
    if isinstance(found, tuple):
        return torch.cat([_rows(part) for part in found], dim=1)
    if found.ndim == 4:
        return found.mean(dim=(2, 3))
    return found.mean(dim=1) if found.ndim == 3 else found


def _collapsed(signs: Mapping[str, float]) -> tuple[str, str] | None:
    """What has collapsed, as `Method.collapse_causes` calls it, and in words; None if nothing has."""
    information, entropy = signs.get("teacher_information"), signs.get("teacher_entropy")
    if information is not None and entropy is not None and information < LEAST_INFORMATION:
        kind = "one output" if entropy < SURE else "uniform output"
        how = f"entropy {entropy:.3g} nats, of which {information:.2g} tell images apart"
        return kind, f"the teacher says the same of all images ({kind}: {how})"
    for name, what in (("output", "what is compared"), ("feature", "their features")):
        std, rank = signs.get(f"{name}_std", 1.0), signs.get(f"{name}_rank", math.inf)
        if std < LEAST_STD or rank < LEAST_RANK[name]:
            how = f"standard deviation {std:.2g} where 1 is evenly spread, effective rank {rank:.3g}"
            return "features", f"all images are nearly alike in {what} ({how})"
    return None
