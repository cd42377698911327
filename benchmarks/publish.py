"""``python -m benchmarks.publish``: docs/performance.md, a page a machine, results.md, scores.md and gpu-kernels.md.

Likewise, from the ledger of the GPU kernels, the sentence in README.md and what ``fastssl info`` tells, and in the
ledger which kernels are unproven now; in migrating.md what other libraries' losses took before and after; and in the
recipe above each method what it comes to.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from benchmarks import age, crossover_page, demo, freed_memory, hosts, kernels_page, plots, summary, tables
from benchmarks.gpu import check, ledger
from benchmarks.gpu.ledger import Ledger
from benchmarks.markdown import MADE, circumstances, table_of
from benchmarks.scores import davis, digits, side_by_side
from benchmarks.scores import table as scores
from benchmarks.summary import Machine, Measured, Report, Series
from fastssl import info
from fastssl.errors import UserError
from fastssl.eval.protocol import RANDOM, TRAINED
from fastssl.eval.tracking import UNMOVED
from fastssl.files import atomic_write
from fastssl.ops import _crossover

READ_PICTURE = """\
SimCLR's loss, `nt_xent`, forward and backward: time and memory of one call over the number of {variable}, two for each
image ({fixed}; both axes logarithmic), on {machine}.
fastssl never stores the similarity of every two rows, so its memory does not grow with the square of their number.
{slower}Pictures of other ops are on the machines' pages, to which the headings below lead.
"""
READ_SUMMARY = f"""\
Each op at each measured shape against the **best** of its rivals, all in turns in one process (`from_files`: each
in its own). *Times faster* is the best rival's median over ours: bold where we are **slower**, and *alike* where
{summary.ALIKE}.
The *floor* is the time of the operations, exponentials and memory traffic that no implementation can do without (each
input read and each output written once) at the best rates that plain loops reached on the machine in the same run;
*of the floor's speed* is that time in percent of ours. Those rates have noise too: a time may be a few percent past it.
*MB* is what one call adds to the process's high-water mark, where that was measured: ours and the best rival's, and in
the last column that of the rival that needs least, if it is another; bold where a rival needs **less** than ours.
A machine *with freed memory kept* is the same one without what new pages cost (`python -m benchmarks --keep-memory`):
on some, above all virtual ones, those take longer than the op, and the more the more intermediates a provider has.

Each op was measured with its rivals in a run of its own; its machine's page has every provider's times, rates and
errors. Below each table stand the commits (*-dirty* where something was changed and not committed) and which rows are
**older** than the code they measure: its kernels and what these include, or the readers or losses, have changed since,
so today's times may differ.
[benchmarking.md](benchmarking.md) tells how, and what a GPU's times mean.
"""
READ_WHOLE = f"""\
What users of another library call, in a step of their own loop: the library's own arguments, features as a network
gives them, forward and backward, with all else that a call does, such as writing the bank. *Theirs* is the library's
class (of `facebook` and `solo`, which are no packages that import here, the formula arranged as there), and *compiled*
the same under `torch.compile`, all in turns with ours in one process. Each *times faster* is their median over ours:
bold where we are **slower**, and *alike* where {summary.ALIKE}.
*MB* is what one call adds to the process's high-water mark: bold where theirs or the compiled form needs **less**.
"""
# What a reader of some results must know beside that, here and on the machines' pages.
NOTES = {
    "from_files": "Each provider is in a process of its own, which stands still while others have their turn: DALI's "
    "threads would go on making batches in their time. Up to commit 219088e providers were timed one after the other.",
    "start": "In a process that has imported everything, of 100,000 images of 8 x 8 pixels whose names the system has "
    "in memory: what a command takes to start Python and import torch comes on top, and so does a disk's first look at "
    "the folder. Up to commit 219088e the names were those of 100 files.",
}
NOT_MEASURED = "Not yet measured."
READ_DETAILS = """\
*fastssl against it*: how many times faster fastssl is than that provider. Rates count what the algorithm itself must
do (*with recompute*: also what ours computes twice to store less). The error is the largest relative error against
float64. A provider *again* is the same code timed twice: what differs no more than these two is no difference.

The floor of a case is the larger of two times: its bytes at the machine's best bandwidth over that much memory, and
its operations at the rate of multiply-adds (of bfloat16 where the inputs are; of float32, or a sixth of bfloat16's if
that is more, as with a matrix unit, which multiplies floats in parts so) plus its exponentials at the rate of the
faster exp, ours or torch's; all of them are measured by `benchmarks/floors.cpp` in the same run. On a GPU, which has a
unit for each, it is the largest of three: `benchmarks/gpu/floors.py`. The rates are the best of many short loops, which
the machine's noise does not spare: what comes within a few percent of its floor, or past it, is as fast as it can be.
"""
READ_PROVEN = """\
A kernel is *proven* where its tests and a memcheck passed on a GPU and nothing has changed since of its file and of
what it includes, and nothing but comments of the bindings, the compilers' options, and its op's own file:
[benchmarking.md](benchmarking.md) tells of the ledger. Where its tests have changed since, it says so: the next check
runs them. An unproven kernel was compiled for three GPU generations and
tested on a CPU, emulated or interpreted.
"""
READ_DEMO = """\
`{command}` runs the settings of `make demo` with three seeds. Gain by kNN over the same encoder at random
initialisation, in points: {gains}. Seconds are training, evaluation and report together. The test set is small: a
difference of two points between single runs is noise.
"""
READ_DAVIS = """\
`{command} --data DAVIS` trains a small ResNet-18 on the frames of half of the sequences, without masks, and tracks
the first masks of the other half; and the other way round. J&F in per cent, by seed: the mean over
all objects of {sequences} sequences of DAVIS 2016's validation set, 240 pixels high, each tracked by a network that
never saw it.
"""

DOCS = Path(__file__).parent.parent / "docs"
KERNELS = summary.RESULTS / "gpu_kernels.json"
README = DOCS.parent / "README.md"
MIGRATING = DOCS / "migrating.md"
METHODS = DOCS.parent / "fastssl" / "methods"
GPU_LEDGER = "benchmarks/gpu_ledger.json"


def whole_cases(machine: Machine) -> list[Measured]:
    return [case for report in machine.reports if report.is_whole for case in report.cases]


def whole_losses(machines: Sequence[Machine]) -> str:
    """The section of other libraries' losses: a table for each machine that has measured some."""
    parts = ["## Whole losses, as their users call them\n", READ_WHOLE]
    for machine in machines:
        if cases := whole_cases(machine):
            parts += [f"### [{machine.name}](performance/{machine.folder}.md)\n", tables.whole_table(cases), ""]
            parts.append(tables.lost(cases) + age.commits([report for report in machine.reports if report.is_whole]))
    return "\n".join(parts if len(parts) > 2 else [*parts, NOT_MEASURED + "\n"])


def gains(machines: Sequence[Machine]) -> str:
    """What other libraries' losses take before and after the migration, on each machine that has measured some."""
    head = ["forward and backward", "measured on", "ms before", "ms after", "times faster", "MB before", "MB after"]
    rows = []
    for machine in machines:
        for case in whole_cases(machine):
            ours, theirs = case.ours, case.eager
            before = "-" if theirs is None else tables.milliseconds(theirs["median"])
            times = [before, tables.milliseconds(ours["median"]), tables.times_faster(case, theirs)]
            rows.append([tables.loss_of(case), machine.name, *times, tables.megabytes(theirs), tables.megabytes(ours)])
    return table_of(head, 2, rows) if rows else NOT_MEASURED


def picture(series: Series) -> str:
    """The file's name of a series' picture."""
    return f"{series.op}-{'-'.join(re.findall(r'[a-z0-9]+', series.fixed))}.svg"


def pictures(report: Report, folder: Path) -> list[str]:
    """Draws the op's series into ``folder`` and returns the lines that show them on a page there."""
    lines = []
    for series in summary.series(report):
        with atomic_write(folder / picture(series)) as path:
            plots.draw(series, path)
        lines.append(f"![Time and memory of {series.op} over {series.variable}]({folder.name}/{picture(series)})\n")
    return lines


def first_picture(machines: Sequence[Machine]) -> list[str]:
    """One series as an example, before all tables: time and memory of SimCLR's loss on the machine measured last."""
    for machine in machines:
        for report in machine.reports:
            for series in summary.series(report) if report.op == "nt_xent" else ():
                slower = [f"{size:,.0f}" for size, case in series.cases.items() if case.verdict == "slower"]
                where = f"At {' and '.join(slower)} {series.variable} the best rival is faster. " if slower else ""
                told = READ_PICTURE.format(machine=machine.name, **vars(series), slower=where)
                link = f"![Time and memory of nt_xent over {series.variable}](performance/{machine.folder}"
                return [f"{link}/{picture(series)})\n", told]
    return []


def machine_page(machine: Machine, docs: Path, note: str = "") -> str:
    """Everything measured on one machine; its pictures are drawn into a folder beside the page."""
    parts = [MADE, f"# Performance on {machine.name}\n", *([note, ""] if note else []), READ_DETAILS]
    parts += [line for report in machine.reports for line in pictures(report, docs / machine.folder)]
    for report in machine.reports:
        note_of_op = [NOTES[report.op] + "\n"] if report.op in NOTES else []
        parts += [f"## {report.op}\n", *note_of_op, tables.details(report), "", circumstances(report.run)]
        parts += [f"- {older}\n" if (older := age.told(age.changed_since(report))) else ""]
    return "\n".join(parts)


def performance(machines: Sequence[Machine], found: Ledger, note: str = "") -> str:
    """The text of performance.md; ``note`` stands before all else."""
    parts = [MADE, "# Performance\n", *([note, ""] if note else []), *first_picture(machines), READ_SUMMARY]
    measured = {report.op for machine in machines for report in machine.reports}
    parts += [*(f"`{op}`: {told}\n" for op, told in NOTES.items() if op in measured), gpu_sentence(found), ""]
    for machine in machines:
        of_ops = [report for report in machine.reports if not report.is_whole]
        parts += [f"## [{machine.name}](performance/{machine.folder}.md)\n", tables.first_table(of_ops), ""]
        parts.append(tables.lost([case for report in of_ops for case in report.cases]) + age.commits(of_ops))
    parts += [
        whole_losses(machines),
        "## Which GPU kernels are proven\n",
        READ_PROVEN,
        proven_table(found, check.retested(found)),
        "",
    ]
    return "\n".join([*parts, crossover_page.section(json.loads(_crossover.TABLE.read_text()), machines)])


def proven_table(found: Ledger, retested: Collection[str] = ()) -> str:
    """A row for the file of each GPU kernel: on which GPU it was checked as it is now, or why it is unproven.

    ``retested`` are the ops whose tests are others now.
    """
    entries, rows = ledger.completed(found), []
    for op, backend in ledger.kernels():
        path = ledger.FILES[backend].format(op)
        entry = entries.get(path, {"unproven": info.NOT_YET})
        where = f"{entry['device']}, {entry['date']}" if "device" in entry else ""
        if "unproven" in entry:
            told = f"**unproven**: {entry['unproven']}"
        else:
            told = f"proven: tests {entry['tests']}, memcheck {entry['memcheck']}"
            told += f", {info.OTHER_TESTS}" if op in retested else ""
        rows.append([f"`{path}`", told, where])
    return table_of(["kernel", "state", "checked on"], 3, rows)


def recorded(found: Ledger) -> dict[str, ledger.Entry]:
    """What an installation tells of the GPU kernels' checks."""
    return ledger.recorded(found, check.retested(found))


def gpu_sentence(found: Ledger) -> str:
    """What README.md and performance.md tell of the ledger in a sentence."""
    return f"CUDA and Triton kernels {info.gpu_sentence(recorded(found), strong='**', code='`')}."


def filled(page: str, source: str, said: str) -> str:
    """The page with ``said`` between the marks of what is made from ``source``."""
    first, last = f"<!-- made by `python -m benchmarks.publish` from {source} -->", "<!-- until here -->"
    between = re.compile(rf"(?<={re.escape(first)}\n).*?(?=\n{re.escape(last)})", re.DOTALL)
    assert between.search(page), f"the page lacks the lines {first} and {last}"
    return between.sub(lambda _: said, page)


def with_gpu_sentence(readme: str) -> str:
    """README.md with the sentence of the GPU kernels."""
    return filled(readme, GPU_LEDGER, gpu_sentence(ledger.read()))


def with_gains(migrating: str, machines: Sequence[Machine]) -> str:
    """migrating.md with what other libraries' losses took before and after."""
    return filled(migrating, "benchmarks/results", gains(machines))


def results() -> str:
    report = json.loads(demo.RESULT.read_text())
    rows = []
    for row in report["rows"]:
        for i, (features, accuracy) in enumerate(row["accuracy"].items()):
            scores = (f"{100 * accuracy[key]:.1f} %" for key in ("knn", "linear"))
            seconds = row["seconds_with_evaluation_and_report"]
            rows.append([row["seed"] if i == 0 else "", features, *scores, seconds if i == 0 else ""])
    gains = ", ".join(f"{row['knn_gain_over_random_initialisation_in_points']:+.1f}" for row in report["rows"])
    parts = [
        MADE,
        "# Results\n",
        "## The demo: SimCLR on the embedded drawings\n",
        READ_DEMO.format(command=report["command"], gains=gains),
        table_of(["seed", "features", "kNN", "linear probe", "seconds"], 2, rows),
        "",
        circumstances(report["run"]),
        "",
        *side_by_side.section(),
        *tracking(),
        *digits.section(),
        *freed_memory.section(),
    ]
    return "\n".join(parts)


def tracking(path: Path = davis.RESULT) -> list[str]:
    """The section on tracking through DAVIS, once that is measured."""
    if not path.exists():
        return []
    report = json.loads(path.read_text())
    rows, names = report["rows"], (TRAINED, RANDOM, UNMOVED)
    table = [[seed, *(f"{100 * scores[name]:.1f}" for name in names)] for seed, scores in davis.overall(rows).items()]
    minutes = max(row["minutes_of_training"] for row in rows)
    sequences = len({name for row in rows for name in row["trained_on"]})
    return [
        "## Tracking: video colorization on DAVIS\n",
        READ_DAVIS.format(command=report["command"], sequences=sequences),
        table_of(["seed", *names], 1, table),
        "",
        f"The longest training took {minutes:.1f} minutes. Scores of each object are in the JSON file.\n",
        circumstances(report["run"]),
        "",
    ]


def recipes(found: Sequence[scores.Results]) -> dict[Path, str]:
    """The files of the methods that have scores, whose recipes say them."""
    texts: dict[Path, str] = {}
    for each in found:
        path = METHODS / f"{each.told['method']}.py"
        if each.told["of"] is None and path.exists():
            texts[path] = scores.with_score(texts.get(path) or path.read_text(), each)
    return texts


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.publish", description=__doc__)
    parser.parse_args()
    machines = summary.machines(summary.RESULTS)
    try:
        hosts.demand_alike(machines)
    except UserError as error:
        parser.error(str(error))
    found = ledger.completed(ledger.read())
    pages = {DOCS / "performance.md": performance(machines, found), DOCS / "results.md": results()}
    of_methods = scores.read()
    pages[DOCS / "scores.md"] = scores.page(of_methods)
    pages |= recipes(of_methods)
    pages[DOCS / "gpu-kernels.md"] = kernels_page.page(json.loads(KERNELS.read_text()))
    pages[README] = with_gpu_sentence(README.read_text())
    pages[MIGRATING] = with_gains(MIGRATING.read_text(), machines)
    pages[ledger.LEDGER] = json.dumps(found, indent=1) + "\n"
    pages[info.PROVEN] = json.dumps(recorded(found), indent=1) + "\n"
    for machine in machines:
        pages[DOCS / "performance" / f"{machine.folder}.md"] = machine_page(machine, DOCS / "performance")
    for page, text in pages.items():
        with atomic_write(page) as path:
            path.write_text(text)
        print(page)


if __name__ == "__main__":
    main()
