from __future__ import annotations

import json

import pytest
import torch
from labelled import splits

from fastssl import models
from fastssl.errors import UserError
from fastssl.eval import FinetuneConfig, finetune, linear_probe, tuning
from fastssl.eval.features import extract
from fastssl.eval.protocol import RANDOM, TRAINED
from fastssl.eval.tuning import Bench, Case, Result

QUICK = FinetuneConfig(epochs=2, least_steps=2, batch_size=16)


def encoder(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return models.get("resnet18")(stem="cifar", width=4).eval()


def test_the_cases_of_each_protocol() -> None:
    few = tuning.cases("few", encoder(0), 2)
    assert len(few) == 2 * 2 * 2 * 2
    assert few[:4] == [
        Case(TRAINED, 0.01, 0, 0),
        Case(RANDOM, 0.01, 0, 0),
        Case(TRAINED, 0.01, "all", 0),
        Case(RANDOM, 0.01, "all", 0),
    ]
    assert {case.tuned for case in tuning.cases("partial", encoder(0), 1)} == {0, 1, 2, 4, 8, "all"}
    assert {(case.labels, case.tuned) for case in tuning.cases("finetune", encoder(0), 1)} == {(1.0, 0), (1.0, "all")}
    with pytest.raises(UserError, match="did you mean 'few'"):
        tuning.cases("fewer", encoder(0), 1)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="got 0"):
        tuning.cases("few", encoder(0), 0)


def test_a_case_is_the_probe_or_the_fine_tuning_of_its_subset() -> None:
    data = splits()
    assert data.test is not None
    assert data.test.labels is not None
    bench = Bench(encoder(0), encoder(1), data, size=16, config=QUICK)
    features = [extract(encoder(1), part.images, size=16) for part in (data.train, data.test)]
    probe = bench.run(Case(RANDOM, 0.25, 0, 3))
    chosen = tuning.few_labels(data.train.labels, share=0.25, seed=3)
    expected = linear_probe(
        features[0][chosen], data.train.labels[chosen], features[1], data.test.labels, num_classes=2, seed=3
    )
    assert (probe.accuracy, probe.images, probe.parameters) == (expected.accuracy, 10, 0)

    whole = bench.run(Case(TRAINED, 0.25, "all", 3))
    alone = finetune(encoder(0), data.train.subset(chosen), data.test, size=16, config=QUICK, seed=3)
    assert (whole.accuracy, whole.parameters, whole.images) == (alone.accuracy, alone.parameters, 10)


def test_results_survive_json() -> None:
    for tuned in (0, 0.5, 2, "all"):
        result = Result(Case(TRAINED, 0.1, tuned, 1), 50, 7, 0.75)  # type: ignore[arg-type]
        assert tuning.from_dict(json.loads(json.dumps(result.to_dict()))) == result


def test_lines_are_means_and_deviations_over_seeds() -> None:
    results = [
        Result(Case(features, 1.0, "all", seed), 40, 7, accuracy)
        for seed, pair in enumerate(((0.5, 0.1), (0.7, 0.2)))
        for features, accuracy in zip((TRAINED, RANDOM), pair, strict=True)
    ]
    trained, untrained = tuning.lines(results)
    assert (trained.features, trained.mean, trained.seeds) == (TRAINED, pytest.approx(0.6), 2)
    assert trained.spread == pytest.approx(0.02**0.5)
    assert untrained.mean == pytest.approx(0.15)
    assert tuning.lines(results[:1])[0].spread is None


def test_depth_in_words() -> None:
    words = [tuning.in_words(tuned) for tuned in (0, 0.5, 1, 4, "all")]  # type: ignore[arg-type]
    assert words == ["linear probe", "half a block", "1 block", "4 blocks", "all"]
