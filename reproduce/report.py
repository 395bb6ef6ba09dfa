"""Tables from logs/, written between their markers in README.md, README_cn.md, docs/ and logs/.

    python -m reproduce.report                          write them
    python -m reproduce.report --check                  change nothing; exit 1 and say where a table is stale
    python -m reproduce.report --compare RUN_A RUN_B    whether one run repeats the other to the last digit

A page says which table it wants with a line `<!-- table NAME -->` and, below, `<!-- end of table -->`; NAME is one of
TABLES. Tables show logs/evidence and logs/study; a run of your own is shown once its folder is moved there.
"""

import argparse
import json
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from common.atomic import atomic_write
from common.errors import UserError, near, printable
from reproduce import ROOT, audit, results
from reproduce.cli import Parser, parse, run_command, say
from reproduce.results import ARMS, STUDIES
from reproduce.run_log import read_metrics

PAGES = ("README.md", "README_cn.md", "docs/*.md", "logs/README.md", "logs/tuning/README.md")
END = "<!-- end of table -->"
_MARKER = re.compile(r"^<!-- table (.*?) -->$", re.MULTILINE)
_SPEED = "train/images_per_second"  # what two runs with the same numbers record differently


# ---- cells


class Markup(str):
    """A cell that is Markdown; any other text is escaped."""


def markdown(table: pd.DataFrame) -> str:
    """A table as GitHub's Markdown. A study is named in the first of its rows only."""
    if table.empty:
        return "(no runs)"
    if "study" in table:
        table = table.assign(study=table["study"].mask(table["study"].duplicated(), ""))
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
        self.folder = Path(root) / "logs"
        self.runs = results.find_runs(self.folder, results.CITED)
        self.studies = results.study_runs(self.runs)
        self.arms = results.arms(self.studies)
        self.published = audit.read_record(self.folder / "published")

    def minus(self, reference: str) -> dict[tuple[str, str], dict]:
        """(study, arm) -> its differences to another arm of the study."""
        rows = results.differences(self.studies, reference).to_dict("records")
        return {(row["study"], row["arm"]): row for row in rows}


NOTHING = dict.fromkeys(results.with_halves(), np.nan)  # an arm without runs, or without seeds in common


def top1(literature: pd.DataFrame, model: str, source: str) -> str:
    """What a source reports for CIFAR-100 at 384 px."""
    found = literature[(literature["model"] == model) & (literature["data"] == "CIFAR-100, 384 px")]
    return found[found["source"].str.contains(source)]["top1"].iloc[0]


def first(logs: Logs) -> pd.DataFrame:
    runs, literature = logs.published["runs"], logs.published["literature"]
    zbp = runs[(runs["repository"] == audit.ZBP) & (runs["processes"] > 1)].sort_values("best").iloc[-1]
    zpc = runs[runs["repository"] == audit.ZPC].sort_values("best").iloc[-1]
    audited = (
        f"{zbp['best']:.2f} (zbp, mean of {zbp['processes']} processes), {zpc['best']:.2f} (zpc, best on the test set)"
    )
    google = top1(literature, "ViT-B/16", "google-research").split()[0]
    headlines = {
        "ViT-B/16 + R-Drop": ("cifar100_vit_b16_rdrop", audited),
        "ViT-B/16": ("cifar100_vit_b16_baseline", f"{google} (Google, mean of 6)"),
    }
    rows = []
    for model, (recipe, others) in headlines.items():
        paper = top1(literature, model, "^paper$")
        own = results.means(logs.runs[logs.runs["recipe"] == recipe])
        rows.append((model, "CIFAR-100, 384 px", paper, others, plus_minus(own, "accuracy", 2, 100)))
    arms = {(arm["study"], arm["arm"]): arm for arm in logs.arms.to_dict("records")}
    for name, model in (("cifar100_102", "ViT-Ti/16"), ("digits", "small ViT")):
        study = STUDIES[name]
        for arm in (study.rdrop, "two_views", "baseline"):
            own = plus_minus(arms.get((name, arm), NOTHING), study.measure("accuracy"), 2, 100)
            rows.append((f"{model}, {ARMS[arm]}", study.title, "-", "-", own))
    table = pd.DataFrame(rows, columns=("model", "data", "paper", "others, audited", "ours"))
    table.loc[0, "paper"] = Markup(f"**{table['paper'][0]}**")  # the target
    return table.assign(ours=table["ours"].replace("-", "not run yet"))


def kl(logs: Logs) -> pd.DataFrame:
    rows, minus = [], logs.minus("two_views")
    for arm in logs.arms.to_dict("records"):
        study, difference = STUDIES[arm["study"]], minus.get((arm["study"], arm["arm"]), NOTHING)
        rows.append(
            {
                "study": f"{study.title} ({study.endpoint} weights)",
                "arm": arm["label"],
                "n": arm["n"],
                "top-1, %": plus_minus(arm, study.measure("accuracy"), 2, 100),
                "minus two views": plus_minus(difference, study.measure("accuracy"), 2, 100, "+"),
                "NLL minus two views": plus_minus(difference, study.measure("nll"), 3, 1, "+"),
            }
        )
    return pd.DataFrame(rows)


def arms(logs: Logs) -> pd.DataFrame:
    def best_and_last(arm, measure, digits, scale=1) -> Markup:
        return Markup("<br>".join(plus_minus(arm, m, digits, scale) for m in (measure, f"{measure}_last")))

    return pd.DataFrame(
        {
            "study": STUDIES[arm["study"]].title,
            "arm": arm["label"],
            "n": arm["n"],
            "top-1, %": best_and_last(arm, "accuracy", 2, 100),
            "NLL, nats": best_and_last(arm, "nll", 4),
            "calibration error, points": best_and_last(arm, "ece", 2, 100),
            "min": f"{arm['seconds'] / 60:.1f}",
        }
        for arm in logs.arms.to_dict("records")
    )


def differences(logs: Logs) -> pd.DataFrame:
    references = {arm: logs.minus(arm) for arm in ARMS if not arm.startswith("rdrop")}
    rows = []
    for arm in logs.arms[~logs.arms["arm"].str.startswith("baseline")].to_dict("records"):
        study = STUDIES[arm["study"]]
        row = {"study": f"{study.title} ({study.endpoint} weights)", "top-1 of": arm["label"]}
        for reference, minus in references.items():
            difference = minus.get((arm["study"], arm["arm"]), NOTHING)
            row[f"minus {ARMS[reference]}"] = plus_minus(difference, study.measure("accuracy"), 2, 100, "+")
        rows.append(row)
    return pd.DataFrame(rows)


def seeds(logs: Logs) -> pd.DataFrame:
    rows = []
    for (study, arm), own in logs.studies.groupby(["study", "arm"], sort=False):
        best, last = (", ".join(f"{100 * value:.2f}" for value in own[name]) for name in ("accuracy", "accuracy_last"))
        rows.append(
            {
                "study": study,
                "arm": ARMS[arm],
                "seeds": ", ".join(map(str, own["seed"])),
                "top-1 of the best weights, %": best,
                "of the last, %": "the same" if best == last else last,
            }
        )
    return pd.DataFrame(rows)


def tuning(logs: Logs) -> pd.DataFrame:
    rows = []
    for run in results.tuning(logs.folder).itertuples():
        label = ARMS.get(run.arm, run.arm)
        cells = [f"{run.rate:g}", f"{100 * run.accuracy:.1f}", f"{run.nll:.3f}"]
        rows.append((run.study, label, run.steps, *(Markup(f"**{c}**") if run.chosen else c for c in cells)))
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
    table = audit.judge(logs.published["runs"])
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
    for part in [logs.folder / "bench" / f"{name}.json" for name in names.index]:
        if not part.exists():  # the other names are of competitors
            continue
        what, ours = names[part.stem], "here, R-Drop" if part.stem.startswith("step") else "here"
        for name, found in json.loads(part.read_text())["competitors"].items():
            if "split" in name:  # views that share blocks have left the code
                continue
            rate = found.get("images_per_second")
            rows.append(
                {
                    "what": what,
                    "who": ours if name == "ours" else names.get(name, name),
                    "seconds": median_and_range(found),
                    "time, ours = 1": median_and_range(found["ratio_to_ours"]),
                    "images/s": f"{rate:,.3g}" if rate else "-",
                    "peak GB": f"{found['memory_peak_bytes'] / 1e9:.2f}",
                    "n": found["n"],
                }
            )
            what = ""
    return pd.DataFrame(rows)


def arms_commands(logs: Logs) -> pd.DataFrame:
    rows = []
    for (study, arm), own in logs.studies.groupby(["study", "arm"], sort=False):
        repeat = f"OMP_NUM_THREADS={own['threads'].iloc[0]} {results.command(own.iloc[0])}"
        rows.append((f"study/{study}-{arm}-seed*", ", ".join(map(str, own["seed"])), code(repeat)))
    for run in logs.runs[logs.runs["name"].str.startswith("evidence/")].to_dict("records"):
        rows.append((run["name"], run["seed"], code(results.command(run))))
    return pd.DataFrame(rows, columns=("runs", "seeds N", "command"))


TABLES = {
    table.__name__: table
    for table in (first, kl, arms, differences, seeds, tuning, claims, literature, speed, arms_commands)
}
TABLES["audit"] = audited


# ---- pages


def fresh(text: str, name: str, logs: Logs) -> str:
    """The text of a page with its tables as logs/ give them. Raises UserError for markers that do not fit."""
    parts, position = [], 0
    for marker in _MARKER.finditer(text):
        end = text.find(END, marker.end())
        if end < 0 or marker.start() < position or _MARKER.search(text, marker.end(), end):
            raise UserError(f"{name}: below the line {marker[0]} the line {END} is missing; restore it")
        if marker[1] not in TABLES:
            raise UserError(f"{name}: there is no table {marker[1]!r}: {near(marker[1], TABLES)}")
        table = markdown(TABLES[marker[1]](logs))
        if name.endswith("_cn.md"):
            table = translate(table)
        parts += [text[position : marker.end()], f"\n\n{table}\n\n"]
        position = end
    return "".join(parts) + text[position:]


def stale_line(old: str, new: str) -> int:
    """The number of the first line in which two texts differ."""
    lines, others = old.splitlines(), new.splitlines()
    pairs = enumerate(zip(lines, others, strict=False), 1)
    return next((number for number, (one, other) in pairs if one != other), min(len(lines), len(others)) + 1)


# ---- two runs


def find_run(name: str) -> Path:
    """The folder of a run given by its path or by its name under logs/."""
    for path in (Path(name), results.LOGS / name):
        if (path / "run.json").exists():
            return path
    raise UserError(
        f"{name}: not a run; give a folder with run.json, or its name under logs/ "
        "(python -m reproduce.results lists them)"
    )


def compare(a: Path, b: Path) -> list[tuple[str, str]]:
    """(what, text) lines about the best weights of two runs on the same test images.

    Raises UserError for folders without predictions, and for runs that were not tested on the same images.
    """
    one, other = results.read_predictions(a), results.read_predictions(b)
    sets = [json.loads((path / "run.json").read_text())["recipe"]["dataset"] for path in (a, b)]
    if sets[0] != sets[1] or len(one) != len(other) or (one["label"] != other["label"]).any():
        raise UserError(
            f"{a} was tested on {len(one):,} images of {sets[0]}, {b} on {len(other):,} of {sets[1]}, and "
            "these are not the same; compare runs with the same test set"
        )
    only_a, only_b = int((one["hit"] & ~other["hit"]).sum()), int((other["hit"] & ~one["hit"]).sum())
    p = stats.binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    return [
        ("A", f"{100 * one['hit'].mean():.2f} %, NLL {one['nll'].mean():.4f}; alone right on {only_a:,} images"),
        ("B", f"{100 * other['hit'].mean():.2f} %, NLL {other['nll'].mean():.4f}; alone right on {only_b:,} images"),
        ("McNemar", f"p = {p:.2g} (exact, two-sided; says nothing about other seeds)"),
        ("records", _repeats(a, b, one, other)),
    ]


def _repeats(a: Path, b: Path, one: pd.DataFrame, other: pd.DataFrame) -> str:
    """Whether all that both runs recorded, but their speed, and all predictions are the same, or where they part."""
    mine, theirs = (
        {
            (row["step"], tag): value
            for row in read_metrics(run)
            for tag, value in row.items()
            if tag not in ("step", _SPEED)
        }
        for run in (a, b)
    )
    common = [key for key in mine if key in theirs]
    for step, tag in common:
        if mine[step, tag] != theirs[step, tag]:
            return f"A and B part at step {step:,} in {tag}"
    for column in one:
        if not one[column].equals(other[column]):
            return f"A and B part in the predictions ({column})"
    alone = sorted({tag for _, tag in mine.keys() ^ theirs.keys()})
    extra = f"; not compared, as one of them alone has it: {', '.join(alone)}" if alone else ""
    return f"A and B are the same to the last digit in {len(common):,} recorded values and all predictions{extra}"


def main(argv=None) -> None:
    parser = Parser(
        prog="python -m reproduce.report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--check", action="store_true", help="exit 1 when a table is not what logs/ give")
    task.add_argument("--compare", nargs=2, metavar=("RUN_A", "RUN_B"), help="folders of runs, or names under logs/")
    parser.add_argument("--root", default=str(ROOT), help="folder with the pages and logs/ (default: here)")
    options = parse(parser, argv)
    if options.compare:
        for what, text in compare(*map(find_run, options.compare)):
            say(what, text)
        return
    root, stale = Path(options.root), []
    logs = Logs(root)
    for path in sorted(path for pattern in PAGES for path in root.glob(pattern)):
        name, old = path.relative_to(root).as_posix(), path.read_text()
        new = fresh(old, name, logs)
        if new == old:
            continue
        if options.check:
            stale.append(f"{name}, line {stale_line(old, new)}: not what logs/ give; run python -m reproduce.report")
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
