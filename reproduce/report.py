"""Tables from logs/, written between their markers in README.md, README_cn.md, docs/ and logs/.

    python -m reproduce.report                          write them
    python -m reproduce.report --check                  change nothing; exit 1 and say where a table is stale
    python -m reproduce.report --compare RUN_A RUN_B    whether one run repeats the other to the last digit

A page says which table it wants with a line `<!-- table NAME -->` and, below, `<!-- end of table -->`; NAME is one of
TABLES. Tables show logs/evidence and logs/study; a run of your own is shown once its folder is moved there.
"""

import itertools
import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from common.atomic import atomic_write
from common.errors import UserError, near, printable
from reproduce import ROOT, audit, results
from reproduce.cli import Parser, parse, run_command, say
from reproduce.results import ARMS, STUDIES
from reproduce.run_log import read_metrics

PAGES = ("README.md", "README_cn.md", "docs/*.md", "logs/README.md", "logs/tuning/README.md")
END = "<!-- end of table -->"
_MARKER = re.compile(r"^<!-- table ([^\n]*?) -->$", re.MULTILINE)
_BLOCK = re.compile(rf"{_MARKER.pattern}(?:(?!^<!-- table ).)*?^{END}$", re.MULTILINE | re.DOTALL)
_NOT_COMPARED = {"step", "train/images_per_second"}  # two runs with the same numbers may differ in speed


# ---- cells


class Markup(str):
    """A cell that is Markdown; any other text is escaped."""


def markdown(table: pd.DataFrame) -> str:
    """A table as GitHub's Markdown. What is measured is named in the first of its rows only."""
    if table.empty:
        return "(no runs)"
    for column in {"study", "what"} & {table.columns[0]}:
        table[column] = table[column].mask(table[column].duplicated(), "")
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy(dtype=object).tolist()]
    return "\n".join(f"| {' | '.join(_cell(value) for value in row)} |" for row in rows)


def translate(text: str) -> str:
    """The words and phrases of docs/words_cn.csv in Chinese, longer ones first."""
    words = pd.read_csv(ROOT / "docs" / "words_cn.csv").set_index("english")["chinese"]
    known = "|".join(re.escape(english) for english in sorted(words.index, key=len, reverse=True))
    return re.sub(rf"\b({known})(?!\w)", lambda match: words[match[0]], text)


def _cell(value) -> str:
    return value if isinstance(value, Markup) else escape(str(value))


def escape(text: str) -> str:
    """Text from a file for a page: without line breaks and control characters, and nothing in it is markup."""
    text = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|])", r"\\\1", text)


def code(text: str) -> Markup:
    """A command as code, for a cell."""
    plain = text.isprintable() and "`" not in text and "|" not in text
    return Markup(f"`{text}`" if plain else escape(text))


def plus_minus(row, measure: str, digits: int, scale: float = 1.0, sign: str = "") -> Markup:
    """A mean of `results` ± half the width of its interval; with `sign` a difference, bold where 0 is not in it."""
    mean, half = row[measure], row[f"{measure}_half"]
    if np.isnan(mean):
        return Markup("-")
    text = f"{scale * mean:{sign}.{digits}f}"
    if np.isnan(half):
        return Markup(text)
    text += f" ± {scale * half:.{digits}f}"
    return Markup(f"**{text}**" if sign and abs(mean) > half else text)


# ---- the tables


class Logs:
    """What the tables are made from, read once."""

    def __init__(self, root: Path):
        self.folder = root / "logs"
        self.runs = results.find_runs(self.folder, results.CITED)
        self.studies = results.study_runs(self.runs)
        self.arms = results.arms(self.studies).set_index(["study", "arm"], drop=False)
        self.published = audit.read_record(self.folder / "published")

    def minus(self, reference: str) -> pd.DataFrame:
        """A row for each row of `arms`: its differences to another arm of the study, NaN where there are none."""
        return results.differences(self.studies, reference).set_index(["study", "arm"]).reindex(self.arms.index)


def weights_of(study: str) -> str:
    """What the values of a study are of."""
    return f"{STUDIES[study].title} ({STUDIES[study].endpoint} weights)"


def first(logs: Logs) -> pd.DataFrame:
    runs, literature = logs.published["runs"], logs.published["literature"]
    literature = literature[literature["data"] == "CIFAR-100, 384 px"]
    paper = literature[literature["source"] == "paper"].set_index("model")["top1"]
    zbp = runs[(runs["repository"] == audit.ZBP) & (runs["processes"] > 1)].sort_values("best").iloc[-1]
    zpc = runs[runs["repository"] == audit.ZPC].sort_values("best").iloc[-1]
    audited = f"{zbp['best']:.2f} (zbp, mean of {zbp['processes']} processes)"
    audited += f", {zpc['best']:.2f} (zpc, best on the test set)"
    google = literature[literature["source"].str.contains("google-research")]["top1"].iloc[0].split()[0]
    headlines = {
        "ViT-B/16 + R-Drop": ("cifar100_vit_b16_rdrop", audited),
        "ViT-B/16": ("cifar100_vit_b16_baseline", f"{google} (Google, mean of 6)"),
    }
    rows = []
    for model, (recipe, others) in headlines.items():
        own = logs.runs[logs.runs["recipe"] == recipe]["accuracy"]
        ours = plus_minus({"accuracy": own.mean(), "accuracy_half": results.half_width(own)}, "accuracy", 2, 100)
        rows.append((model, "CIFAR-100, 384 px", paper[model], others, ours))
    for name, model in (("cifar100_102", "ViT-Ti/16"), ("digits", "small ViT")):
        study = STUDIES[name]
        for arm in (study.rdrop, "two_views", "baseline"):
            row = logs.arms.reindex([(name, arm)]).iloc[0]
            ours = plus_minus(row, study.measure("accuracy"), 2, 100)
            if row["n"] < 3:  # an interval of two values says nothing
                ours = f"{100 * row[study.measure('accuracy')]:.2f} (n = {row['n']:.0f})"
            rows.append((f"{model}, {ARMS[arm]}", study.title, "-", "-", ours))
    table = pd.DataFrame(rows, columns=("model", "data", "paper", "others, audited", "ours"))
    table.loc[0, "paper"] = Markup(f"**{table['paper'][0]}**")  # the target
    return table.assign(ours=table["ours"].replace("-", "not run yet"))


def answer(logs: Logs) -> pd.DataFrame:
    """A column a study: top-1 of two views without KL, and of each other arm its difference to that."""
    minus, columns = logs.minus("two_views"), {}
    for study, own in logs.arms.groupby(level="study", sort=False):
        measure, seeds = STUDIES[study].measure("accuracy"), sorted({own["n"].min(), own["n"].max()})
        cells = {}
        for arm, row in own.droplevel("study").iterrows():
            cells[ARMS[arm]] = plus_minus(minus.loc[study, arm], measure, 2, 100, "+")
            if arm == "two_views":
                cells[ARMS[arm]] = plus_minus(row, measure, 2, 100)
        columns[f"{STUDIES[study].title} (n = {', '.join(map(str, seeds))})"] = cells
    table = pd.DataFrame(columns).reindex(dict.fromkeys(ARMS.values())).dropna(how="all").fillna("-")
    return table.rename_axis("top-1, %").reset_index()


def kl(logs: Logs) -> pd.DataFrame:
    minus = logs.minus("two_views")
    return pd.DataFrame(
        {
            "study": weights_of(study),
            "arm": ARMS[arm],
            "n": row["n"],
            "top-1, %": plus_minus(row, STUDIES[study].measure("accuracy"), 2, 100),
            "minus two views": plus_minus(minus.loc[study, arm], STUDIES[study].measure("accuracy"), 2, 100, "+"),
            "NLL minus two views": plus_minus(minus.loc[study, arm], STUDIES[study].measure("nll"), 3, 1, "+"),
        }
        for (study, arm), row in logs.arms.iterrows()
    )


def arms(logs: Logs) -> pd.DataFrame:
    def best_and_last(row, measure, digits, scale=1) -> Markup:
        return Markup("<br>".join(plus_minus(row, m, digits, scale) for m in (measure, f"{measure}_last")))

    return pd.DataFrame(
        {
            "study": STUDIES[study].title,
            "arm": ARMS[arm],
            "n": row["n"],
            "top-1, %": best_and_last(row, "accuracy", 2, 100),
            "NLL, nats": best_and_last(row, "nll", 4),
            "calibration error, points": best_and_last(row, "ece", 2, 100),
            "min": f"{row['seconds'] / 60:.1f}",
        }
        for (study, arm), row in logs.arms.iterrows()
    )


def differences(logs: Logs) -> pd.DataFrame:
    references = {arm: logs.minus(arm) for arm in ARMS if not arm.startswith("rdrop")}
    rows = []
    for study, arm in logs.arms.index[~logs.arms["arm"].str.startswith("baseline")]:
        measure = STUDIES[study].measure("accuracy")
        minus = {
            f"minus {ARMS[reference]}": plus_minus(found.loc[study, arm], measure, 2, 100, "+")
            for reference, found in references.items()
        }
        rows.append({"study": weights_of(study), "top-1 of": ARMS[arm], **minus})
    return pd.DataFrame(rows)


def seeds(logs: Logs) -> pd.DataFrame:
    rows = []
    for (study, arm), own in logs.studies.groupby(["study", "arm"], sort=False):
        best, last = (", ".join(f"{100 * value:.2f}" for value in own[name]) for name in ("accuracy", "accuracy_last"))
        rows.append((study, ARMS[arm], ", ".join(map(str, own["seed"])), best, "the same" if best == last else last))
    return pd.DataFrame(rows, columns=("study", "arm", "seeds", "top-1 of the best weights, %", "of the last, %"))


def tuning(logs: Logs) -> pd.DataFrame:
    rows = []
    for run in results.tuning(logs.folder).itertuples():
        cells = [f"{run.rate:g}", f"{100 * run.accuracy:.1f}", f"{run.nll:.3f}"]
        if run.chosen:
            cells = [Markup(f"**{cell}**") for cell in cells]
        rows.append((run.study, ARMS.get(run.arm, run.arm), run.steps, *cells))
    return pd.DataFrame(rows, columns=("study", "arm", "updates", "rate", "validation top-1, %", "validation NLL"))


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
    table = logs.published["claims"]
    return pd.DataFrame(
        {
            "repository": table["repository"],
            "claim, %": table["percent"].map("{:.2f}".format),
            "what": table["what"],
            "supported by its logs": table["supported"],
            "its logs reach, whole test set": table["reached"].map("{:.2f}".format),
            "where the value stands": table["rests_on"],
        }
    )


def literature(logs: Logs) -> pd.DataFrame:
    table = logs.published["literature"]
    table = table.assign(source=table["source"].map(Markup), note=table["note"].map(Markup))  # they hold links
    return table.rename(columns={"top1": "top-1, %", "note": "what to know"})


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


def arms_commands(logs: Logs) -> pd.DataFrame:
    rows = []
    for (study, arm), own in logs.studies.groupby(["study", "arm"], sort=False):
        repeat = f"OMP_NUM_THREADS={own['threads'].iloc[0]} {results.command(own.iloc[0])}"
        rows.append((f"study/{study}-{arm}-seed*", ", ".join(map(str, own["seed"])), code(repeat)))
    for _, run in logs.runs[logs.runs["name"].str.startswith("evidence/")].iterrows():
        rows.append((run["name"], run["seed"], code(results.command(run))))
    return pd.DataFrame(rows, columns=("runs", "seeds N", "command"))


TABLES = {
    table.__name__: table
    for table in (first, answer, kl, arms, differences, seeds, tuning, claims, literature, speed, arms_commands)
}
TABLES["audit"] = audited


# ---- pages


def fresh(text: str, name: str, logs: Logs) -> str:
    """The text of a page with its tables as logs/ give them. Raises UserError for markers that do not fit."""
    whole = {block.start() for block in _BLOCK.finditer(text)}
    for marker in _MARKER.finditer(text):
        if marker.start() not in whole:
            raise UserError(f"{name}: below the line {marker[0]} the line {END} is missing; restore it")
        if marker[1] not in TABLES:
            raise UserError(f"{name}: there is no table {marker[1]!r}: {near(marker[1], TABLES)}")

    def block(match) -> str:
        table = markdown(TABLES[match[1]](logs))
        if name.endswith("_cn.md"):
            table = translate(table)
        return f"<!-- table {match[1]} -->\n\n{table}\n\n{END}"

    return _BLOCK.sub(block, text)


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
    root, stale = Path(options.root), []
    logs = Logs(root)
    for path in sorted(path for pattern in PAGES for path in root.glob(pattern)):
        name, old = path.relative_to(root).as_posix(), path.read_text()
        new = fresh(old, name, logs)
        if new == old:
            continue
        if options.check:
            lines = itertools.zip_longest(old.split("\n"), new.split("\n"))
            line = next(number for number, (one, other) in enumerate(lines, 1) if one != other)
            stale.append(f"{name}, line {line}: not what logs/ give; run python -m reproduce.report")
            continue
        with atomic_write(path, "w") as file:
            file.write(new)
        say("written", name)
    if stale:
        print("\n".join(stale), file=sys.stderr)
        sys.exit(1)
    say("tables", "all are what logs/ give")


if __name__ == "__main__":
    run_command(main)
