"""Tables from logs/, written between their markers in README.md, README_cn.md and docs/.

    python -m reproduce.report                          write them
    python -m reproduce.report --check                  change nothing; exit 1 and name the pages where a table is stale
    python -m reproduce.report --compare RUN_A RUN_B    whether one run repeats the other to the last digit

A page says which table it wants with a line `<!-- table NAME -->` and, below, `<!-- end of table -->`; NAME is one of
TABLES. Tables show logs/evidence and logs/study; a run of your own is shown once its folder is moved there.
"""

import json
import re
import sys
from pathlib import Path

import pandas as pd

from common.errors import UserError
from common.system import atomic_write
from reproduce import ROOT, results
from reproduce.cli import Parser, parse, run_command, say
from reproduce.results import ARMS, STUDIES
from reproduce.run_log import read_metrics

PAGES = ("README.md", "README_cn.md", "docs/*.md")
REFERENCES = [arm for arm in ARMS if not arm.startswith("rdrop")]
END = "<!-- end of table -->"
_NOT_COMPARED = {"step", "train/images_per_second"}  # two runs with the same numbers may differ in speed


def markdown(table: pd.DataFrame) -> str:
    """A table as GitHub's Markdown. What is measured is named in the first of its rows only."""
    if table.empty:
        return "(no runs)"
    for column in {"study", "what"} & {table.columns[0]}:
        table[column] = table[column].mask(table[column].duplicated(), "")
    rows = [table.columns, ["---"] * len(table.columns), *table.to_numpy(dtype=object)]
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)


def translate(text: str) -> str:
    """The words and phrases of docs/words_cn.csv in Chinese, longer ones first."""
    words = pd.read_csv(ROOT / "docs" / "words_cn.csv").set_index("english")["chinese"]
    known = "|".join(re.escape(english) for english in sorted(words.index, key=len, reverse=True))
    return re.sub(rf"\b({known})(?!\w)", lambda match: words[match[0]], text)


def plus_minus(row, measure: str, digits: int = 2, scale: float = 100, sign: str = "") -> str:
    """A mean of `results` ± half the width of its interval; with `sign` a difference, bold where 0 is not in it."""
    mean, half = row[measure], row[f"{measure}_half"]
    text = f"{scale * mean:{sign}.{digits}f}"
    if pd.isna(half):  # of one or two seeds
        return text
    text += f" ± {scale * half:.{digits}f}"
    return f"**{text}**" if sign and abs(mean) > half else text


class Logs:
    """What the tables are made from, read once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.evidence = results.find_runs(folder / "evidence")
        self.studies = results.study_runs(folder)
        self.arms = results.arms(self.studies).set_index(["study", "arm"], drop=False)
        self.minus = {arm: results.differences(self.studies, arm).set_index(["study", "arm"]) for arm in REFERENCES}

    def compared(self, study: str, arm: str, minus: str = "", measure: str = "accuracy", digits=2, scale=100) -> str:
        """An arm's mean of what its study compares; with `minus` its difference from that arm."""
        table = self.minus[minus] if minus else self.arms
        if (study, arm) not in table.index:  # no seed in common
            return "-"
        return plus_minus(table.loc[(study, arm)], STUDIES[study].measure(measure), digits, scale, "+" if minus else "")


def first(logs: Logs) -> pd.DataFrame:
    def ours(runs: pd.DataFrame, measure: str = "accuracy") -> str:
        if runs.empty:
            return "not run yet"
        mean, half = 100 * runs[measure].mean(), 100 * results.half_width(runs[measure])
        return f"{mean:.2f} (n = {len(runs)})" if pd.isna(half) else f"{mean:.2f} ± {half:.2f}"

    published = pd.read_csv(logs.folder / "published" / "runs.csv")  # see docs/audit.md
    best = published.groupby(["repository", "processes"])["best"].max()
    zbp, zpc = best["zbp-xxxp/R-Drop-Paddle", 4], best["zpc-666/Paddle-R-Drop", 1]
    ports = f"{zbp:.2f} (zbp, mean of 4 processes), {zpc:.2f} (zpc, best on the test set)"
    rdrop, plain = (logs.evidence.query(f"recipe == 'cifar100_vit_b16_{name}'") for name in ("rdrop", "baseline"))
    rows = [
        # of the paper and of google-research/vision_transformer: docs/results.md
        ("ViT-B/16 + R-Drop", "CIFAR-100, 384 px", "**93.29**", ports, ours(rdrop)),
        ("ViT-B/16", "CIFAR-100, 384 px", "92.64", "92.21 (Google, mean of 6)", ours(plain)),
    ]
    for model, name in (("ViT-Ti/16", "cifar100_102"), ("small ViT", "digits")):
        study = STUDIES[name]
        for arm in ("rdrop_0.3", "two_views", "baseline"):
            runs = logs.studies.query("study == @name and arm == @arm")
            rows.append((f"{model}, {ARMS[arm]}", study.title, "-", "-", ours(runs, study.measure("accuracy"))))
    return pd.DataFrame(rows, columns=("model", "data", "paper", "others, audited", "ours"))


def answer(logs: Logs) -> pd.DataFrame:
    """A column a study: top-1 of two views without KL, and of each other arm its difference to that."""
    columns = {}
    for study, own in logs.arms.groupby(level="study", sort=False):
        cells = {ARMS[arm]: logs.compared(study, arm, "" if arm == "two_views" else "two_views") for arm in own["arm"]}
        columns[STUDIES[study].title_and_n(own["n"])] = cells
    table = pd.DataFrame(columns).reindex(dict.fromkeys(ARMS.values())).dropna(how="all").fillna("-")
    return table.rename_axis("top-1, %").reset_index()


def kl(logs: Logs) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "study": STUDIES[study].title_and_weights(),
            "arm": ARMS[arm],
            "n": row["n"],
            "top-1, %": logs.compared(study, arm),
            "minus two views": logs.compared(study, arm, minus="two_views"),
            "NLL minus two views": logs.compared(study, arm, "two_views", "nll", digits=3, scale=1),
            "calibration error minus two views": logs.compared(study, arm, "two_views", "ece"),
        }
        for (study, arm), row in logs.arms.iterrows()
    )


def arms(logs: Logs) -> pd.DataFrame:
    def best_and_last(row, measure, digits=2, scale=100) -> str:
        return "<br>".join(plus_minus(row, name, digits, scale) for name in (measure, f"{measure}_last"))

    return pd.DataFrame(
        {
            "study": STUDIES[study].title,
            "arm": ARMS[arm],
            "n": row["n"],
            "top-1, %": best_and_last(row, "accuracy"),
            "NLL, nats": best_and_last(row, "nll", 4, 1),
            "calibration error, points": best_and_last(row, "ece"),
            "min": f"{row['seconds'] / 60:.1f}",
        }
        for (study, arm), row in logs.arms.iterrows()
    )


def differences(logs: Logs) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "study": STUDIES[study].title_and_weights(),
            "top-1 of": ARMS[arm],
            **{f"minus {ARMS[other]}": logs.compared(study, arm, minus=other) for other in REFERENCES},
        }
        for study, arm in logs.arms.index
        if not arm.startswith("baseline")
    )


def seeds(logs: Logs) -> pd.DataFrame:
    rows = []
    for (study, arm), own in logs.studies.groupby(["study", "arm"], sort=False):
        best, last = (", ".join(f"{100 * value:.2f}" for value in own[name]) for name in ("accuracy", "accuracy_last"))
        rows.append((study, ARMS[arm], ", ".join(map(str, own["seed"])), best, "the same" if best == last else last))
    return pd.DataFrame(rows, columns=("study", "arm", "seeds", "top-1 of the best weights, %", "of the last, %"))


def speed(logs: Logs) -> pd.DataFrame:
    spread = "{median:.3g} ({lowest:.3g} to {highest:.3g})"
    names = pd.read_csv(logs.folder / "bench" / "names.csv", index_col="name")["shown"]
    rows = []
    for part in [part for part in names.index if (logs.folder / "bench" / f"{part}.json").exists()]:
        names["ours"] = "here, R-Drop" if part.startswith("step") else "here"
        record = json.loads((logs.folder / "bench" / f"{part}.json").read_text())
        for name, found in record["competitors"].items():
            times = spread.format(**found), spread.format(**found["ratio_to_ours"])
            rate = f"{found['images_per_second']:,.2f}" if "images_per_second" in found else "-"
            memory = f"{found['memory_peak_bytes'] / 1e9:.2f}"
            rows.append((names[part], names.get(name, name), *times, rate, memory, found["n"]))
    return pd.DataFrame(rows, columns=("what", "who", "seconds", "time, ours = 1", "images/s", "peak GB", "n"))


TABLES = {table.__name__: table for table in (first, answer, kl, arms, differences, seeds, speed)}
_BLOCK = re.compile(rf"^<!-- table ({'|'.join(TABLES)}) -->\n(?:(?!<!-- table ).*\n)*?{END}$", re.MULTILINE)


def fresh(page: Path, logs: Logs) -> str:
    """The text of a page with its tables as logs/ give them. Raises UserError for markers that do not fit."""

    def block(match) -> str:
        new = markdown(TABLES[match[1]](logs))
        new = translate(new) if page.name.endswith("_cn.md") else new
        return f"<!-- table {match[1]} -->\n\n{new}\n\n{END}"

    old = page.read_text()
    new, count = _BLOCK.subn(block, old)
    if count != old.count("<!-- table "):
        text = f"each line <!-- table NAME --> needs a line {END} below it, and NAME is one of {', '.join(TABLES)}"
        raise UserError(f"{page}: {text}; restore them")
    return new


def compare(a: Path, b: Path) -> str:
    """Whether two runs are the same in all predictions and all that both recorded but speed, or where they part."""
    one, other = (results.read_predictions(run) for run in (a, b))
    mine, theirs = (
        {(row["step"], tag): row[tag] for row in read_metrics(run) for tag in row.keys() - _NOT_COMPARED}
        for run in (a, b)
    )
    common = [key for key in mine if key in theirs]
    for step, tag in common:
        if mine[step, tag] != theirs[step, tag]:
            return f"the two part at step {step:,} in {tag}"
    for column in one:
        if not one[column].equals(other[column]):
            return f"the two part in the predictions ({column})"
    alone = sorted({tag for _, tag in mine.keys() ^ theirs.keys()})
    extra = f"; not compared, as one of them alone has it: {', '.join(alone)}" if alone else ""
    return f"the same to the last digit in {len(common):,} recorded values and all predictions{extra}"


def main(argv=None) -> None:
    parser = Parser(prog="python -m reproduce.report", description=__doc__)
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--check", action="store_true", help="exit 1 when a table is not what logs/ give")
    task.add_argument("--compare", nargs=2, metavar=("RUN_A", "RUN_B"), help="folders of two runs")
    options = parse(parser, argv)
    if options.compare:
        say("runs", compare(*map(Path, options.compare)))
        return
    logs = Logs(ROOT / "logs")
    new = {page: fresh(page, logs) for pattern in PAGES for page in sorted(ROOT.glob(pattern))}
    stale = [page for page, text in new.items() if text != page.read_text()]
    if stale and options.check:
        pages = ", ".join(page.relative_to(ROOT).as_posix() for page in stale)
        sys.exit(f"{pages}: tables are not what logs/ give; write them with python -m reproduce.report")
    for page in stale:
        with atomic_write(page, "w") as file:
            file.write(new[page])
        say("written", str(page))
    say("tables", "all are what logs/ give")


if __name__ == "__main__":
    run_command(main)
