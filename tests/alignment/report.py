"""The tables of the alignment: `python -m tests.alignment.report` runs the five stages and writes logs/alignment/.

report.md has one line a stage, differences.csv one line a quantity. Exit code 1 if a difference is above its threshold.
"""

import csv
import dataclasses
import sys
from importlib.metadata import version

from reproduce import ROOT
from reproduce.run_log import machine

FOLDER = ROOT / "logs" / "alignment"
PACKAGES = ("paddlepaddle", "torch", "timm", "reprod_log", "numpy")
HEADER = ("stage", "precision", "loss", "quantities", "largest mean", "largest max", "threshold", "passed")


def table(found) -> list[str]:
    """One line for each stage, precision and form of the loss; Markdown in columns."""
    groups = {}
    for difference in found:
        groups.setdefault((difference.stage, difference.dtype, difference.form or "-"), []).append(difference)
    order = list(dict.fromkeys(difference.stage for difference in found))
    rows = [HEADER]
    for key, group in sorted(groups.items(), key=lambda item: (order.index(item[0][0]), item[0])):
        failed = sum(not difference.passed for difference in group)
        rows.append(
            (
                *key,
                str(len(group)),
                f"{max(difference.mean for difference in group):.1e}",
                f"{max(difference.max for difference in group):.1e}",
                f"{group[0].threshold:.0e}",
                f"NO: {failed} of {len(group)}" if failed else "yes",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    rows.insert(1, tuple("-" * width for width in widths))
    return ["| " + " | ".join(f"{cell:{w}}" for cell, w in zip(row, widths, strict=True)) + " |" for row in rows]


def notes(facts) -> list[str]:
    """What was compared, under which conditions."""
    lines = [
        f"- Images: {facts.images}. Means and maxima are of absolute differences; `quantities` counts tensors and "
        "scalars, the largest of each kind is shown. A line passes when every mean is within the threshold.",
        "- Loss `official`: CE1 + CE2 + 0.3 (KL12 + KL21), KL summed over 32 images; `port`: half of that.",
    ]
    lines.append(
        "- Paddle's momentum operator keeps its coefficient in float32 also for float64 weights, so both sides have "
        "0.9 rounded to float32; without that the float64 weights would differ by some 1e-9."
    )
    for (dtype, form), norms in facts.norms.items():
        places = {place for *_, place in facts.places[dtype, form][0]}
        lines.append(
            f"- Training, {dtype}, loss {form}: {len(norms)} updates, gradient norm {min(norms):.2f} to "
            f"{max(norms):.2f}, clipped to 1 in {sum(norm > 1 for norm in norms)}; {len(places)} dropouts, "
            f"{facts.places[dtype, form][0].total():,} masks, each the same on both sides."
        )
    about = machine()
    changed = " with changes" if about["git_dirty"] else ""
    versions = ", ".join(f"{name} {version(name)}" for name in PACKAGES)
    return [
        *lines,
        f"- {about['started']}, commit {about['git_commit']}{changed}, {about['cores']} cores, {about['processor']}.",
        f"- Versions: {versions}.",
    ]


def write(found, summary: list[str]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with open(FOLDER / "differences.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*(field.name for field in dataclasses.fields(found[0])), "passed"])
        for d in found:
            row = dataclasses.asdict(d) | {"mean": f"{d.mean:.3e}", "max": f"{d.max:.3e}", "passed": d.passed}
            writer.writerow(row.values())
    text = [
        "# Alignment with PyTorch",
        "",
        "This project's training beside an independent PyTorch side (timm's ViT; loss, clipping, SGD and schedule as",
        "in the official code), with the same weights, images and dropout masks. Written by",
        "`python -m tests.alignment.report`; every quantity is in differences.csv.",
        "",
        *summary,
    ]
    (FOLDER / "report.md").write_text("\n".join(text) + "\n")


def main() -> None:
    from . import stages

    found, facts = stages.run_all()
    summary = [*table(found), "", *notes(facts)]
    write(found, summary)
    print("\n".join([*summary, "", f"written: {FOLDER.relative_to(ROOT)}/"]))
    sys.exit(0 if all(difference.passed for difference in found) else 1)


if __name__ == "__main__":
    main()
