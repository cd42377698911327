from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report_helpers import without_labels

from fastssl.data import plan_words
from fastssl.data.images import Splits
from fastssl.report import page, write_report
from fastssl.train import log
from fastssl.train.folder import RunFolder
from fastssl.train.log import MetricsLog
from fastssl.train.trained import Trained

SCORES = {
    "rows": [
        {"features": "trained", "dim": 64, "knn": 0.75, "linear": 0.8, "l2": 1.0},
        {"features": "random initialisation", "dim": 64, "knn": 0.5, "linear": 0.9, "l2": 1.0},
        {"features": "raw pixels", "dim": 768, "knn": 0.25, "linear": 0.3, "l2": 1.0},
    ],
    "majority": 0.33,
    "k": 20,
    "temperature": 0.1,
    "train_images": 24,
    "test_images": 12,
    "classes": 3,
}


class Page(HTMLParser):
    """Collects the page's words and addresses, and checks that its tags close."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words, self.sources, self.titles, self.open = "", [], [], []
        self.feed(html)
        assert not self.open
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.sources += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        self.titles += [value for name, value in attributes if name == "title"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words += data


@pytest.fixture(scope="module")
def scored(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = RunFolder(tmp_path_factory.mktemp("scored"))
    folder.metrics.write_bytes(trained.folder.metrics.read_bytes())
    folder.scores.write_text(json.dumps(SCORES))
    return replace(trained, folder=folder)


@pytest.fixture(scope="module")
def html(scored: Trained, splits: Splits) -> str:
    write_report(scored, splits, scored.folder.report)
    return scored.folder.report.read_text(encoding="utf-8")


def test_the_page_needs_no_network(html: str) -> None:
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in Page(html).sources)
    assert not re.search(r"https?://|@import|url\((?!#)", html.replace("http://www.w3.org/", ""))


def test_it_tells_what_was_run_and_how_to_repeat_it(scored: Trained, html: str) -> None:
    words = Page(html).words
    assert "SimCLR on noise" in words
    assert "saw 24 images of 16 \N{MULTIPLICATION SIGN} 16 pixels for 2 epochs" in words
    assert "fastssl pretrain simclr --data noise --image_size 16 --width 8 --epochs 2" in words
    assert f"torch {scored.checkpoint.environment['torch']}" in words
    assert "not complete" not in words


def test_it_shows_which_images_are_alike_before_and_after(html: str) -> None:
    before, after = (html.index(f"Similarities of images, {name}") for name in ("random initialisation", "trained"))
    assert before < after
    assert "Images of one class" in Page(html).words


def test_it_shows_the_views_under_words_for_the_plan(scored: Trained, html: str) -> None:
    words = Page(html).words
    assert " ".join(plan_words.describe(scored.config.view_plan()).split()) in words
    assert "--columns: 3" in html
    assert words.count("view 1") >= page.VIEW_ROWS


def test_scores_stand_beside_what_learnt_nothing(html: str) -> None:
    words = Page(html).words
    assert re.search(r"trained\s*64\s*75\.0\s*80\.0", words)
    assert re.search(r"raw pixels\s*768\s*25\.0\s*30\.0", words)
    assert re.search("gain over random initialisation, points ?\\+25\\.0\\s*\N{MINUS SIGN}10\\.0", words)
    assert "+25.0 points against the untrained encoder" in words


def test_names_from_outside_are_text_not_markup(html: str) -> None:
    assert "<blue>" not in html
    assert "<file>" not in html
    words = Page(html).words
    assert "<blue>" in words
    assert "1 file skipped" in words
    assert "bad <file>.png: cut off" in words


def test_without_labels_it_says_why_there_are_no_scores(trained: Trained, splits: Splits) -> None:
    found = Page(page.render(trained, Splits(without_labels(splits.train), None)))
    assert "The images have no labels, so there is nothing to score against" in found.words
    assert "✓" not in found.words
    assert "✗" not in found.words
    assert "24 images by t-SNE" in found.words


def test_one_epoch_is_told_of_in_the_singular(trained: Trained, splits: Splits) -> None:
    once = replace(trained, checkpoint=replace(trained.checkpoint, epoch=1))
    assert "pixels for 1 epoch, without a label" in Page(page.render(once, splits)).words


def test_before_scoring_it_says_how_to_score(trained: Trained, splits: Splits) -> None:
    assert "Not scored yet: fastssl evaluate RUN" in Page(page.render(trained, splits)).words


def test_a_stopped_run_is_drawn_as_far_as_it_came(trained: Trained, splits: Splits, tmp_path: Path) -> None:
    stopped = replace(
        trained, folder=RunFolder(tmp_path), checkpoint=replace(trained.checkpoint, epoch=0, step=0, seconds=0.0)
    )
    words = Page(page.render(stopped, splits)).words
    assert "This run is not complete: 0 of 2 epochs are done." in words
    assert "images a second" not in words


def test_signs_of_a_collapse_are_curves_once_there_are_two_looks(trained: Trained, tmp_path: Path) -> None:
    drawn = replace(trained, folder=RunFolder(tmp_path))
    rows = log.read(trained.folder.metrics)
    assert "feature_rank" in rows[0].extra
    assert "feature_rank" not in rows[1].extra
    for looks, titles in (
        (1, set()),
        (2, {"Effective rank", "Effective rank of what is compared", "Spread of the features"}),
    ):
        MetricsLog(drawn.folder, steps=0)
        signs = [rows[0].extra if i < looks else rows[1].extra for i in range(len(rows))]
        lines = [json.dumps(replace(row, extra=extra).flat()) for row, extra in zip(rows, signs, strict=True)]
        drawn.folder.metrics.write_text("".join(f"{line}\n" for line in lines))
        found = {curve.title for curve in page._curves(drawn, None)}
        assert found & {told[1] for told in page._SIGNS} == titles


def test_few_images_have_no_map(trained: Trained, splits: Splits) -> None:
    few = replace(
        splits.test, images=splits.test.images[:4], labels=splits.test.labels[:4], names=splits.test.names[:4]
    )
    words = Page(page.render(trained, Splits(splits.train, few))).words
    assert "Too few images for a map." in words


def test_the_same_run_gives_the_same_page(scored: Trained, splits: Splits, html: str, tmp_path: Path) -> None:
    write_report(scored, splits, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == html


def test_a_missing_extra_is_said(
    scored: Trained, splits: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastssl.report._NEEDS", ("jinja2", "no_such_module"))
    with pytest.raises(ImportError, match=r"needs no_such_module: pip install 'fastssl\[report\]'"):
        write_report(scored, splits, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.25, "0.2 s"), (59.6, "1 min"), (61, "1 min 1 s"), (3600, "1 h"), (7325, "2 h 2 min 5 s")]
)
def test_durations(seconds: float, text: str) -> None:
    assert page._duration(seconds) == text


def test_amounts() -> None:
    assert [page._amount(n) for n in (999, 12_345, 11_176_512)] == ["999", "12.3 k", "11.2 M"]
