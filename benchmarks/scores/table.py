"""The page of scores, made of the results files: what each method learnt, and whether that is more than chance."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.markdown import MADE, circumstances, table_of
from benchmarks.scores.cells import CIFAR10, IMAGENETTE, IMAGES, SUPERVISED
from benchmarks.summary import SCORES as RESULTS
from fastssl.eval import tuning
from fastssl.eval.protocol import RANDOM, TRAINED

Row = dict[str, Any]
PROBES = {"knn": "kNN", "linear": "linear probe"}

READ = """\
CIFAR-10 (JPEG copies of the images at quality 75, a little below the originals; 50,000 for training, 5,000 for
testing), one small encoder, minutes on two CPU cores, and the same protocol for all. Nothing here is what the method
can do at its best: it is what it has learnt by then. Accuracy in per cent: the mean over the seeds and, behind ±, the
standard deviation. *Untrained* is the same encoder at its random start, of the same seed. *Above*: whether the mean
gain is more than the spread, which is the larger of the two ranges from the lowest to the highest seed, of the trained
and of the untrained encoder. The *pretext task* is scored on the test images, beside what guessing gives; where it has
no classes its error is told, beside that of a constant answer, or its loss; of `split_brain`, whose classes are narrow,
the loss beside the least of one answer for all. `supervised` is the same encoder trained
with all labels: its task is the classification itself.

`python -m benchmarks.scores --data CIFAR` trains what is missing; the settings of each cell are in its file in
`benchmarks/results/scores`.
"""
READ_ABLATIONS = """\
One thing changed, all else as in the method's own row, which comes first. Points are against that row.
"""
READ_TUNED = """\
Accuracy with {share:.0%} of the labels, equally many of each class, when more and more of the encoder is tuned:
nothing (the linear probe), the MLP of the last block, blocks, all. `mae` and `simclr.vit` are the same Vision
Transformer; all of it tuned from a random start is supervised training. In the lecture's words a contrast wins the
probe and MAE the fine-tuning: {found}
"""
NOT_YET = "Not yet measured.\n"
READ_LARGER = """\
Methods that compare parts of an image, on Imagenette (9,469 images for training, 3,925 for testing, 10 classes of
ImageNet) at 96 pixels: of CIFAR-10's 32 a part has 7 to 10, in which little can be recognised, and edges tell the
answer.
`python -m benchmarks.scores --images imagenette --data IMAGENETTE` trains what is missing.
"""


@dataclass(frozen=True)
class Results:
    """The file of one cell.

    Attributes:
        name: of the cell.
        told: what the file says.
    """

    name: str
    told: dict[str, Any]

    @property
    def images(self) -> str:
        """Which data set it is of."""
        return IMAGENETTE if self.name.startswith(f"{IMAGENETTE}.") else CIFAR10

    @property
    def rows(self) -> list[Row]:
        rows: list[Row] = self.told["rows"]
        return rows

    def values(self, features: str, probe: str) -> list[float]:
        """Of each seed, in per cent."""
        return [100 * row[features][probe] for row in self.rows]

    def gain(self, probe: str) -> float:
        """Points above the untrained encoder, in the mean."""
        return statistics.fmean(self.values(TRAINED, probe)) - statistics.fmean(self.values(RANDOM, probe))

    def minutes(self) -> str:
        """Of training, in the mean; a dash where it was not timed."""
        seconds = [row["seconds"] for row in self.rows if "seconds" in row]
        return f"{statistics.fmean(seconds) / 60:.1f}" if seconds else "-"

    def above(self, probe: str) -> str:
        """Whether the gain is more than the spread."""
        if len(self.rows) < 2:
            return "one seed"
        spread = max(max(values) - min(values) for values in (self.values(f, probe) for f in (TRAINED, RANDOM)))
        return "yes" if self.gain(probe) > spread else "**no**"


def read(folder: Path = RESULTS) -> list[Results]:
    """All cells that have results."""
    return [Results(path.stem, json.loads(path.read_text())) for path in sorted(folder.glob("*.json"))]


def mean(values: Sequence[float], digits: int = 1) -> str:
    """The mean and, of more than one, the standard deviation."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.{digits}f}{spread}"


def task(results: Results) -> str:
    """The pretext task: accuracy beside chance, the error or loss beside a constant answer's, or the loss."""
    found = [row["pretext"] for row in results.rows]
    if all(each.get("constant_loss") is not None for each in found):
        constant = statistics.fmean(each["constant_loss"] for each in found)
        return f"loss {mean([each['loss'] for each in found], 2)} ({constant:.2f})"
    if all(each.get("accuracy") is not None for each in found):
        chance = statistics.fmean(each["chance"] for each in found)
        return f"{mean([100 * each['accuracy'] for each in found])} ({100 * chance:.3g})"
    if all(each.get("error") is not None for each in found):
        constant = statistics.fmean(each["constant"] for each in found)
        return f"error {mean([each['error'] for each in found], 3)} ({constant:.3f})"
    return f"loss {mean([each['loss'] for each in found], 3)}"


def in_one_line(row: Row) -> str:
    """A row for the terminal."""
    scores = [f"{name} {row[TRAINED][key]:.1%}, untrained {row[RANDOM][key]:.1%}" for key, name in PROBES.items()]
    return "; ".join([f"pretext task {task(Results('', {'rows': [row]}))}", *scores])


def with_score(source: str, each: Results) -> str:
    """A method's file, whose recipe says what it comes to."""
    where = f"{IMAGES[each.images]} on two CPU cores: "
    line = f"{where}{each.minutes()} minutes, kNN {mean(each.values(TRAINED, 'knn'))} % "
    line += f"(untrained {mean(each.values(RANDOM, 'knn'))} %); docs/scores.md."
    filled, count = re.subn(f"{where}.*$", line, source, flags=re.MULTILINE)
    assert count == 1, f"the recipe of {each.name} has no line for its score"
    return filled


def page(found: Sequence[Results]) -> str:
    """The text of scores.md."""
    main = {images: [each for each in found if each.images == images and each.told["of"] is None] for images in IMAGES}
    parts = [MADE, "# Scores\n", READ, main_table(main[CIFAR10])]
    parts += ["## Larger photographs\n", READ_LARGER, main_table(main[IMAGENETTE])]
    parts += ["## Ablations\n", READ_ABLATIONS, ablation_table(found), *tuned_section(found)]
    if found:
        parts += ["## Where\n", circumstances(found[0].told["run"]), ""]
    return "\n".join(parts)


def main_table(found: Sequence[Results]) -> str:
    """A row for each method: the supervised encoder last."""
    if not found:
        return NOT_YET
    head = ["method", "pretext task (chance)"]
    for name in PROBES.values():
        head += [name, "untrained", "gain", "above"]
    head += ["parameters", "steps", "minutes"]
    rows = []
    for each in sorted(found, key=lambda each: (each.name == SUPERVISED, each.name)):
        cells = [f"`{each.told['method']}`", task(each)]
        for probe in PROBES:
            cells += [mean(each.values(TRAINED, probe)), mean(each.values(RANDOM, probe))]
            cells += [f"{each.gain(probe):+.1f}", each.above(probe)]
        rows.append([*cells, f"{each.rows[0]['parameters']:,}", f"{each.rows[0]['steps']:,}", each.minutes()])
    return table_of(head, 1, rows) + "\n"


def ablation_table(found: Sequence[Results]) -> str:
    """Each method that has ablations, and below it what was changed."""
    by_name = {each.name: each for each in found}
    rows = []
    for base in sorted({each.told["of"] for each in found if each.told["of"]} & by_name.keys()):
        rows.append([f"`{base}`", "as above", *ablation_cells(by_name[base], None)])
        for each in found:
            if each.told["of"] == base:
                rows.append(["", each.told["what"], *ablation_cells(each, by_name[base])])
    if not rows:
        return NOT_YET
    head = ["method", "changed", "pretext task (chance)", "kNN", "points", "linear probe", "points"]
    return table_of(head, 2, rows) + "\n"


def ablation_cells(each: Results, base: Results | None) -> list[str]:
    cells = [task(each)]
    for probe in PROBES:
        values = each.values(TRAINED, probe)
        cells.append(mean(values))
        if base is None:
            cells.append("")
        else:
            cells.append(f"{statistics.fmean(values) - statistics.fmean(base.values(TRAINED, probe)):+.1f}")
    return cells


def tuned_section(found: Sequence[Results]) -> list[str]:
    """Probe and fine-tuning in one table."""
    tuned = {each.name: tuned_lines(each) for each in found if any("tuned" in row for row in each.rows)}
    if not tuned:
        return ["## Probe and fine-tuning\n", NOT_YET]
    columns = {name: {line.tuned: line for line in lines if line.features == TRAINED} for name, lines in tuned.items()}
    first = next(iter(tuned.values()))
    columns["random start"] = {line.tuned: line for line in first if line.features == RANDOM}
    depths = list(dict.fromkeys(line.tuned for line in first))
    rows = [[tuning.in_words(depth), *(accuracy(column.get(depth)) for column in columns.values())] for depth in depths]
    read = READ_TUNED.format(share=first[0].labels, found=crossover(columns))
    return ["## Probe and fine-tuning\n", read, table_of(["tuned of the encoder", *columns], 1, rows) + "\n"]


def tuned_lines(each: Results) -> list[tuning.Line]:
    return tuning.lines(tuning.from_dict(values) for row in each.rows for values in row.get("tuned", ()))


def accuracy(line: tuning.Line | None) -> str:
    if line is None:
        return "-"
    return f"{100 * line.mean:.1f}" + ("" if line.spread is None else f" ± {100 * line.spread:.1f}")


def crossover(columns: dict[str, dict[Any, tuning.Line]]) -> str:
    """Whether MAE is below the contrast by the probe and above it when all is tuned, each by more than both spreads."""
    mae, contrast = columns.get("mae"), columns.get("simclr.vit")
    if mae is None or contrast is None:
        return "not yet measured."
    signs = []
    for depth in (0, "all"):
        gap = mae[depth].mean - contrast[depth].mean
        clear = abs(gap) > (mae[depth].spread or 0) + (contrast[depth].spread or 0)
        signs.append((gap > 0) - (gap < 0) if clear else 0)
    if signs == [-1, 1]:
        return "so it is here."
    said = {-1: "MAE is below the contrast", 0: "the two are no different", 1: "MAE is above the contrast"}
    return f"not found here. By the probe {said[signs[0]]}, with all tuned {said[signs[1]]}."
