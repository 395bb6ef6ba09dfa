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

from common.errors import UserError, near
from common.system import atomic_write
from reproduce import ROOT, audit, results
from reproduce.cli import Parser, parse, run_command, say
from reproduce.results import ARMS, STUDIES
from reproduce.run_log import read_metrics

PAGES = ("README.md", "README_cn.md", "docs/*.md")
REFERENCES = [arm for arm in ARMS if not arm.startswith("rdrop")]
END = "<!-- end of table -->"
_BLOCK = re.compile(rf"^<!-- table ([^\n]*) -->$(.*?)(^{END}$|\Z)", re.MULTILINE | re.DOTALL)
_NOT_COMPARED = {"step", "train/images_per_second"}  # two runs with the same numbers may differ in speed


# ---- cells


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


# ---- the tables


class Logs:
    """What the tables are made from, read once."""

    def __init__(self, root: Path):
        self.folder = root / "logs"
        self.evidence = results.find_runs(self.folder / "evidence")
        self.studies = results.study_runs(self.folder)
        self.arms = results.arms(self.studies).set_index(["study", "arm"], drop=False)
        self.published = audit.read_record(self.folder / "published")
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

    best = logs.published["runs"].groupby(["repository", "processes"])["best"].max()
    zbp, zpc = best[audit.ZBP, 4], best[audit.ZPC, 1]
    audited = f"{zbp:.2f} (zbp, mean of 4 processes), {zpc:.2f} (zpc, best on the test set)"
    data = "CIFAR-100, 384 px"
    literature = logs.published["literature"].query("data == @data")
    paper = literature.query("source == 'paper'").set_index("model")["top-1, %"]
    google = literature[literature["source"].str.contains("google-research")]["top-1, %"].iloc[0].split()[0]
    rdrop, plain = (logs.evidence.query(f"recipe == 'cifar100_vit_b16_{name}'") for name in ("rdrop", "baseline"))
    rows = [
        ("ViT-B/16 + R-Drop", data, f"**{paper['ViT-B/16 + R-Drop']}**", audited, ours(rdrop)),
        ("ViT-B/16", data, paper["ViT-B/16"], f"{google} (Google, mean of 6)", ours(plain)),
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
        minus = {arm: "" if arm == "two_views" else "two_views" for arm in own["arm"]}
        cells = {ARMS[arm]: logs.compared(study, arm, minus[arm]) for arm in own["arm"]}
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


def audited(logs: Logs) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "repository": run.repository,
            "started": run.started,
            "processes x images of a value": f"{run.processes} x {run.images_per_value:,}",
            "best of one process": f"{run.best_value:.2f} at {run.best_value_step:,}" if run.processes > 1 else "-",
            "best, whole test set": f"{run.best:.2f} at {run.best_step:,}",
            "last, whole test set": f"{run.last:.2f} at {run.last_step:,}",
            "schedule": run.schedule,
        }
        for run in logs.published["runs"].itertuples()
    )


def claims(logs: Logs) -> pd.DataFrame:
    return logs.published["claims"].drop(columns="moment")


def literature(logs: Logs) -> pd.DataFrame:
    return logs.published["literature"]


def speed(logs: Logs) -> pd.DataFrame:
    def median_and_range(found) -> str:
        return f"{found['median']:.3g} ({found['lowest']:.3g} to {found['highest']:.3g})"

    names = pd.read_csv(logs.folder / "bench" / "names.csv").set_index("name")["shown"]
    rows = []
    for part in [part for part in names.index if (logs.folder / "bench" / f"{part}.json").exists()]:
        names["ours"] = "here, R-Drop" if part.startswith("step") else "here"
        found = json.loads((logs.folder / "bench" / f"{part}.json").read_text())["competitors"]
        for name in [name for name in found if name in names]:
            rate = found[name].get("images_per_second")
            rows.append(
                {
                    "what": names[part],
                    "who": names[name],
                    "seconds": median_and_range(found[name]),
                    "time, ours = 1": median_and_range(found[name]["ratio_to_ours"]),
                    "images/s": f"{rate:,.{0 if rate > 100 else 2}f}" if rate else "-",
                    "peak GB": f"{found[name]['memory_peak_bytes'] / 1e9:.2f}",
                    "n": found[name]["n"],
                }
            )
    return pd.DataFrame(rows)


TABLES = {table.__name__: table for table in (first, answer, kl, arms, differences, seeds, claims, literature, speed)}
TABLES["audit"] = audited


# ---- pages


def fresh(page: Path, logs: Logs) -> str:
    """The text of a page with its tables as logs/ give them. Raises UserError for markers that do not fit."""

    def block(match) -> str:
        name, old, end = match.groups()
        if not end or "\n<!-- table " in old:
            raise UserError(f"{page}: below the line <!-- table {name} --> the line {END} is missing; restore it")
        if name not in TABLES:
            raise UserError(f"{page}: there is no table {name!r}: {near(name, TABLES)}")
        new = markdown(TABLES[name](logs))
        if page.name.endswith("_cn.md"):
            new = translate(new)
        return f"<!-- table {name} -->\n\n{new}\n\n{END}"

    return _BLOCK.sub(block, page.read_text())


# ---- two runs


def compare(a: Path, b: Path) -> str:
    """Whether two runs are the same in all predictions and all that both recorded, but their speed, or where they part.

    Raises UserError for folders without predictions.
    """
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
    parser.add_argument("--root", default=str(ROOT), help="folder with the pages and logs/ (default: here)")
    options = parse(parser, argv)
    if options.compare:
        say("runs", compare(*map(Path, options.compare)))
        return
    root = Path(options.root)
    logs = Logs(root)
    new = {page: fresh(page, logs) for pattern in PAGES for page in sorted(root.glob(pattern))}
    stale = [page for page, text in new.items() if text != page.read_text()]
    if stale and options.check:
        pages = ", ".join(page.relative_to(root).as_posix() for page in stale)
        print(f"{pages}: tables are not what logs/ give; write them with python -m reproduce.report", file=sys.stderr)
        sys.exit(1)
    for page in stale:
        with atomic_write(page, "w") as file:
            file.write(new[page])
        say("written", str(page))
    say("tables", "all are what logs/ give")


if __name__ == "__main__":
    run_command(main)
