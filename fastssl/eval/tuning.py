"""Tables of tuning: how much of an encoder is tuned, with how many labels; trained, and from a random start.

Tuned whole from a random start, an encoder is what plain supervised training makes of it: the row that every
self-supervised one has to be set beside.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from fastssl.data.images import Splits
from fastssl.errors import UserError, unknown
from fastssl.eval.features import extract
from fastssl.eval.few import few_labels
from fastssl.eval.finetuning import FinetuneConfig, finetune
from fastssl.eval.linear import linear_probe
from fastssl.eval.protocol import RANDOM, TRAINED, labels_of
from fastssl.models.depth import Tuned, layers

Protocol = Literal["finetune", "partial", "few"]
FEW = (0.01, 0.1)
WORDS: dict[Tuned, str] = {0: "linear probe", 0.5: "half a block", 1: "1 block", "all": "all"}


@dataclass(frozen=True)
class Case:
    """One training with labels.

    Attributes:
        features: where it starts: "trained" or "random initialisation".
        labels: share of the training set's labels, equally many of each class.
        tuned: the last blocks that are tuned, 0.5 for the MLP of a transformer's last, or "all"; 0 is the linear probe.
        seed: draws which labels there are, the order of images and views.
    """

    features: str
    labels: float
    tuned: Tuned
    seed: int


@dataclass(frozen=True)
class Result:
    """What came of a case.

    Attributes:
        images: how many were labelled.
        parameters: how many of the encoder's were tuned.
        accuracy: on the test set, in [0, 1].
    """

    case: Case
    images: int
    parameters: int
    accuracy: float

    def to_dict(self) -> dict[str, Any]:
        """As plain strings and numbers, for JSON; :func:`from_dict` reads it."""
        return asdict(self.case) | {name: value for name, value in asdict(self).items() if name != "case"}


@dataclass(frozen=True)
class Line:
    """Results that differ in nothing but the seed.

    Attributes:
        mean: of the accuracy over the seeds, in [0, 1].
        spread: its standard deviation; None of a single seed.
        seeds: how many there are.
    """

    features: str
    labels: float
    tuned: Tuned
    images: int
    parameters: int
    mean: float
    spread: float | None
    seeds: int


def in_words(tuned: Tuned) -> str:
    """How much of the encoder is tuned, as the tables say it."""
    return WORDS.get(tuned, f"{tuned:g} blocks" if isinstance(tuned, int | float) else tuned)


def from_dict(values: dict[str, Any]) -> Result:
    """The result that :meth:`Result.to_dict` told."""
    case = Case(**{name: values[name] for name in ("features", "labels", "tuned", "seed")})
    return Result(case, values["images"], values["parameters"], values["accuracy"])


def cases(protocol: Protocol, encoder: nn.Module, seeds: int) -> list[Case]:
    """Those of a protocol: seed by seed, trained and from a random start.

    "finetune" is the linear probe and all of the encoder, with all labels; "partial" has steps between these two; "few"
    is the first with 1 % and 10 % of the labels.

    Raises:
        UserError: for another protocol, or no seed.
    """
    if protocol not in get_args(Protocol):
        raise unknown("protocol", protocol, get_args(Protocol))
    if seeds < 1:
        raise UserError(f"seeds, how many there are, must be 1 or more; got {seeds}")
    shares = FEW if protocol == "few" else (1.0,)
    depths: list[Tuned] = layers(encoder).choices() if protocol == "partial" else [0, "all"]
    return [
        Case(features, share, tuned, seed)
        for seed in range(seeds)
        for share in shares
        for tuned in depths
        for features in (TRAINED, RANDOM)
    ]


class Bench:
    """Trains cases of one pair of encoders on one labelled data set; features are computed once an encoder.

    Args:
        encoder, random_encoder: (N, 3, size, size) to (N, F), of one architecture.
        splits: with labels.
        size: side of what the encoders see, in pixels.
        config: of the fine-tuning.
        device: where to compute.
        checkpoint: file for the state of a case that is stopped on the way.
    Raises:
        UserError: for images without labels.
    """

    def __init__(
        self,
        encoder: nn.Module,
        random_encoder: nn.Module,
        splits: Splits,
        *,
        size: int,
        config: FinetuneConfig,
        device: torch.device | str = "cpu",
        checkpoint: Path | None = None,
    ) -> None:
        self.encoders = {TRAINED: encoder.to(device), RANDOM: random_encoder.to(device)}
        self.labels = labels_of(splits)
        self.splits, self.size, self.config, self.device, self.checkpoint = splits, size, config, device, checkpoint
        self._features: dict[str, tuple[Tensor, Tensor]] = {}

    def run(self, case: Case, watch: Callable[[int, int], None] = lambda done, total: None) -> Result:
        """Trains ``case``; ``watch`` is called with (steps done, steps in all), but not by the linear probe."""
        train, test = self.splits.train, self.splits.test
        assert test is not None
        chosen = few_labels(self.labels[0], share=case.labels, seed=case.seed)
        if case.tuned == 0:
            bank, queries = self._extracted(case.features)
            labelled = (bank[chosen], self.labels[0][chosen], queries, self.labels[1])
            probe = linear_probe(*labelled, num_classes=len(train.classes), seed=case.seed)
            return Result(case, len(chosen), 0, probe.accuracy)
        tuned = finetune(
            self.encoders[case.features],
            train if len(chosen) == len(train) else train.subset(chosen),
            test,
            size=self.size,
            tuned=case.tuned,
            config=self.config,
            seed=case.seed,
            device=self.device,
            checkpoint=self.checkpoint,
            watch=watch,
        )
        return Result(case, len(chosen), tuned.parameters, tuned.accuracy)

    def _extracted(self, features: str) -> tuple[Tensor, Tensor]:
        if features not in self._features:
            assert self.splits.test is not None
            bank, queries = (
                extract(self.encoders[features], part.images, size=self.size, device=self.device)
                for part in (self.splits.train, self.splits.test)
            )
            self._features[features] = bank, queries
        return self._features[features]


def lines(results: Iterable[Result]) -> list[Line]:
    """Mean and spread over the seeds, in the order in which each first comes."""
    groups: dict[Case, list[Result]] = {}
    for result in results:
        groups.setdefault(replace(result.case, seed=0), []).append(result)
    return [_line(case, found) for case, found in groups.items()]


def _line(case: Case, results: Sequence[Result]) -> Line:
    values = [result.accuracy for result in results]
    spread = statistics.stdev(values) if len(values) > 1 else None
    first = results[0]
    return Line(
        case.features,
        case.labels,
        case.tuned,
        first.images,
        first.parameters,
        statistics.fmean(values),
        spread,
        len(values),
    )
