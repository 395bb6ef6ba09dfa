"""Tables from logs/, written between their markers in README.md, README_cn.md, docs/ and logs/README.md.

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
from common.errors import UserError, near
from reproduce import ROOT, audit, results
from reproduce.cli import Parser, parse, run_command, say
from reproduce.results import STUDIES
from reproduce.run_log import read_metrics

PAGES = ("README.md", "README_cn.md", "docs/*.md", "logs/README.md", "logs/tuning/README.md")
END = "<!-- end of table -->"
_MARKER = re.compile(r"^<!-- table (.*?) -->$", re.MULTILINE)
_SPEED = "train/images_per_second"  # what two runs with the same numbers record differently

# ---- what others published, top-1 in %; the only numbers here that are not from logs/

PAPER = {  # arXiv 2106.14448, table "image classification": CIFAR-100, ImageNet
    "ViT-B/16": (92.64, 83.97),
    "ViT-B/16 + R-Drop": (93.29, 84.38),
    "ViT-L/16": (93.44, 85.15),
    "ViT-L/16 + R-Drop": (93.85, 85.57),
}
# README history of google-research/vision_transformer, ViT-B/16, CIFAR-100, 384 px: commits 4cf7523 and 15ee25b (2020),
# which had dropout 0 according to commit f952d61; 10ffdeb (2023) with dropout 0 and 0.1
GOOGLE = (92.17, 92.19, 92.26, 92.64, 92.06, 91.92)
_HUB = "https://github.com/"
_GOOGLE = f"[google-research/vision_transformer]({_HUB}google-research/vision_transformer)"
_ZPC = f"[zpc-666/Paddle-R-Drop]({_HUB}zpc-666/Paddle-R-Drop)"
LITERATURE = (  # model, data, top-1, source, what to know
    ("ViT-B/16", "CIFAR-100, 384 px", "92.64", "paper", "quoted: the better of two runs of Google without dropout"),
    (
        "ViT-B/16",
        "CIFAR-100, 384 px",
        f"{np.mean(GOOGLE):.2f} (SD {np.std(GOOGLE, ddof=1):.2f})",
        _GOOGLE,
        f"its six runs: {', '.join(map(str, GOOGLE))}; mirrored images, 98 % of the training set",
    ),
    (
        "ViT-B/16",
        "CIFAR-100, 384 px",
        "92.28",
        f"[jeonsworld/ViT-pytorch]({_HUB}jeonsworld/ViT-pytorch)",
        "92.3 at 224 px",
    ),
    (
        "ViT-B/16",
        "CIFAR-100, 224 px",
        "92.89",
        f"[bwconrad/vit-finetune]({_HUB}bwconrad/vit-finetune)",
        "5,000 updates of 128, SGD 0.01",
    ),
    (
        "ViT-B/16",
        "CIFAR-100, 224 px",
        "93.16",
        "Hugging Face edadaltocg/vit_base_patch16_224_in21k_ft_cifar100",
        "from ImageNet-1k weights, one seed",
    ),
    (
        "ViT-B/16",
        "CIFAR-100",
        "94.2",
        "[MIIL](https://arxiv.org/abs/2104.10972)",
        f"claimed; a user got 92.44 to 93.08 ([issue 40]({_HUB}Alibaba-MIIL/ImageNet21K/issues/40))",
    ),
    (
        "ViT-B/16",
        "CIFAR-100, 224 px",
        "93.99",
        "[SSF](https://arxiv.org/abs/2210.08823)",
        "AugReg weights, AdamW, EMA, 100 epochs",
    ),
    ("ViT-B/16 + R-Drop", "CIFAR-100, 384 px", "93.29", "paper", "the target"),
    (
        "ViT-B/16 + R-Drop",
        "CIFAR-100, 384 px",
        "93.44, 93.92",
        f"[{audit.ZBP}]({_HUB}{audit.ZBP})",
        "claimed; 93.92 is one process on 2,500 images",
    ),
    (
        "ViT-B/16 + R-Drop",
        "CIFAR-100, 384 px",
        "92.71, 92.66",
        _ZPC,
        "two logs: best on the test set; last 92.46 and 92.55; a schedule of 20,000 updates, cut short; strength 4.8",
    ),
    ("ViT-B/16 + R-Drop", "CIFAR-100, 384 px", "92.65", _ZPC, "claimed, no log"),
    (
        "ViT-B/16 + R-Drop",
        "CIFAR-100, 384 px",
        "93.29",
        f"[wzh326/R-Drop]({_HUB}wzh326/R-Drop)",
        "claimed, no log; evaluation leaves out 16 images",
    ),
    ("ViT-L/32", "CIFAR-100, 384 px", "93.29, 93.34", _GOOGLE, "plain, at 41 % of the operations of R-Drop with B/16"),
    ("ViT-L/16", "CIFAR-100, 384 px", "93.44", "paper", ""),
    ("ViT-L/16 + R-Drop", "CIFAR-100, 384 px", "93.85", "paper", ""),
    ("ViT-B/16", "ImageNet", "83.97", "paper", ""),
    ("ViT-B/16", "ImageNet, 384 px", "84.53 to 84.62", _GOOGLE, "plain; 84.12 with dropout 0.1"),
    ("ViT-B/16 + R-Drop", "ImageNet", "84.38", "paper", "below Google's plain runs"),
    ("ViT-L/16", "ImageNet", "85.15", "paper", ""),
    ("ViT-L/16 + R-Drop", "ImageNet", "85.57", "paper", ""),
    (
        "ViT-B/32, AugReg",
        "CIFAR-100",
        "91.09 to 91.62",
        f"[big_vision]({_HUB}google-research/big_vision/blob/main/big_vision/configs/transfer.py)",
        "five runs",
    ),
)

CN = {
    "model": "模型",
    "data": "数据",
    "paper": "论文",
    "others, audited": "其他人（经审计）",
    "ours": "本项目",
    "not run yet": "尚未运行",
    "study": "实验",
    "arm": "方案",
    "top-1, %": "准确率，%",
    "NLL": "NLL",
    "minus two views": "减去无 KL 的两个视图",
    "NLL minus two views": "NLL 之差",
    "one view": "单视图",
    "one view, twice the steps": "单视图，步数加倍",
    "one view, batches of 128": "单视图，batch 128",
    "two views without KL": "两个视图，无 KL",
    "R-Drop 0.1 (tuned)": "R-Drop 0.1（调优）",
    "CIFAR-100, 10 a class, 102 epochs": "CIFAR-100，每类 10 张，102 个 epoch",
    "CIFAR-100, 50 a class, 5 epochs": "CIFAR-100，每类 50 张，5 个 epoch",
    "CIFAR-100, 10 a class, 26 epochs": "CIFAR-100，每类 10 张，26 个 epoch",
    "digits, 58 epochs": "digits，58 个 epoch",
    "CIFAR-100, 384 px": "CIFAR-100，384 px",
    "small ViT": "小型 ViT",
    "last weights": "最后的权重",
    "best weights": "最好的权重",
    "mean of {} processes": "{} 个进程平均",
    "best on the test set": "按测试集挑选",
    "mean of {}": "{} 次平均",
}


class Markup(str):
    """A cell that is Markdown; any other text is escaped."""


def markdown(table: pd.DataFrame) -> str:
    """A table as GitHub's Markdown."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy(dtype=object).tolist()]
    return "\n".join(f"| {' | '.join(_cell(value) for value in row)} |" for row in rows)


def _cell(value) -> str:
    return value if isinstance(value, Markup) else escape(str(value))


def escape(text: str) -> str:
    """Text from a file for a page: without line breaks and control characters, and nothing in it is markup."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*\[\]|])", r"\\\1", text)


def code(text: str) -> Markup:
    """A command as code, for a cell."""
    plain = text.isprintable() and "`" not in text and "|" not in text
    return Markup(f"`{text}`" if plain else escape(text))


def plus_minus(mean: float, half: float, digits: int, scale: float = 1.0, sign: str = "") -> Markup:
    """mean ± half width of the interval; with `sign` a difference, bold where its interval does not hold 0."""
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

    def arm(self, study: str, arm: str) -> str:
        """Test top-1 of an arm, on the weights of its study's endpoint; "-" where it has no runs."""
        own = self.arms[(self.arms["study"] == study) & (self.arms["arm"] == arm)]
        measure = STUDIES[study].measure("accuracy")
        return plus_minus(own[measure].iloc[0], own[f"{measure}_half"].iloc[0], 2, 100) if len(own) else "-"

    def ours(self, recipe: str) -> str:
        """Test top-1 of the runs of a recipe, best weights."""
        own = self.runs[self.runs["recipe"] == recipe]["accuracy"]
        return plus_minus(own.mean(), results.half_width(own), 2, 100) if len(own) else "not run yet"


def first(logs: Logs, words) -> pd.DataFrame:
    runs = logs.published["runs"]
    zbp = runs[(runs["repository"] == audit.ZBP) & (runs["processes"] > 1)].sort_values("best").iloc[-1]
    zpc = runs[runs["repository"] == audit.ZPC].sort_values("best").iloc[-1]
    audited = (
        f"{zbp['best']:.2f} (zbp, {words('mean of {} processes').format(zbp['processes'])}), "
        f"{zpc['best']:.2f} (zpc, {words('best on the test set')})"
    )
    google = f"{np.mean(GOOGLE):.2f} (Google, {words('mean of {}').format(len(GOOGLE))})"
    rows = [
        (
            "ViT-B/16 + R-Drop",
            words("CIFAR-100, 384 px"),
            Markup(f"**{PAPER['ViT-B/16 + R-Drop'][0]}**"),
            audited,
            words(logs.ours("cifar100_vit_b16_rdrop")),
        ),
        (
            "ViT-B/16",
            words("CIFAR-100, 384 px"),
            PAPER["ViT-B/16"][0],
            google,
            words(logs.ours("cifar100_vit_b16_baseline")),
        ),
    ]
    for study, model in (("cifar100_102", "ViT-Ti/16"), ("digits", words("small ViT"))):
        for arm in (STUDIES[study].rdrop, "two_views", "baseline"):
            label = words(STUDIES[study].arms[arm])
            value = logs.arm(study, arm)
            rows.append(
                (
                    f"{model}, {label}",
                    words(STUDIES[study].title),
                    "-",
                    "-",
                    words("not run yet") if value == "-" else value,
                )
            )
    return pd.DataFrame(rows, columns=[words(name) for name in ("model", "data", "paper", "others, audited", "ours")])


def kl(logs: Logs, words) -> pd.DataFrame:
    table = logs.arms.merge(
        results.differences(logs.studies, "two_views"), "left", ["study", "arm"], suffixes=("", "_d")
    )
    rows, shown = [], ""
    for _, arm in table.iterrows():
        study = STUDIES[arm["study"]]
        title = f"{words(study.title)} ({words(f'{study.endpoint} weights')})"
        top1, nll = study.measure("accuracy"), study.measure("nll")
        rows.append(
            (
                title if title != shown else "",
                words(arm["label"]),
                arm["n"],
                plus_minus(arm[top1], arm[f"{top1}_half"], 2, 100),
                plus_minus(arm[f"{top1}_d"], arm[f"{top1}_half_d"], 2, 100, "+"),
                plus_minus(arm[f"{nll}_d"], arm[f"{nll}_half_d"], 3, 1, "+"),
            )
        )
        shown = title
    names = ("study", "arm", "n", "top-1, %", "minus two views", "NLL minus two views")
    return pd.DataFrame(rows, columns=[words(name) for name in names])


def arms(logs: Logs, words) -> pd.DataFrame:
    rows, shown = [], ""
    for _, arm in logs.arms.iterrows():
        measures = ((m, *how) for m, how in {"accuracy": (2, 100), "nll": (4, 1), "ece": (2, 100)}.items())
        cells = [
            Markup(
                f"{plus_minus(arm[m], arm[f'{m}_half'], digits, scale)}<br>"
                f"{plus_minus(arm[f'{m}_last'], arm[f'{m}_last_half'], digits, scale)}"
            )
            for m, digits, scale in measures
        ]
        title = STUDIES[arm["study"]].title
        rows.append((title if title != shown else "", arm["label"], arm["n"], *cells, f"{arm['seconds'] / 60:.1f}"))
        shown = title
    return pd.DataFrame(
        rows, columns=["study", "arm", "n", "top-1, %", "NLL, nats", "calibration error, points", "min"]
    )


def differences(logs: Logs, words) -> pd.DataFrame:
    references = {
        arm: label for study in STUDIES.values() for arm, label in study.arms.items() if not arm.startswith("rdrop")
    }
    tables = {arm: results.differences(logs.studies, arm).set_index(["study", "arm"]) for arm in references}
    rows, shown = [], ""
    for _, arm in logs.arms.iterrows():
        if arm["arm"].startswith("baseline"):
            continue
        study, top1 = STUDIES[arm["study"]], STUDIES[arm["study"]].measure("accuracy")
        key = arm["study"], arm["arm"]
        cells = [
            plus_minus(table.at[key, top1], table.at[key, f"{top1}_half"], 2, 100, "+") if key in table.index else "-"
            for table in tables.values()
        ]
        title = f"{study.title} ({study.endpoint} weights)"
        rows.append((title if title != shown else "", arm["label"], *cells))
        shown = title
    return pd.DataFrame(rows, columns=["study", "top-1 of", *(f"minus {label}" for label in references.values())])


def seeds(logs: Logs, words) -> pd.DataFrame:
    rows = []
    for (study, arm), own in logs.studies.groupby(["study", "arm"], sort=False):
        best, last = (", ".join(f"{100 * value:.2f}" for value in own[name]) for name in ("accuracy", "accuracy_last"))
        rows.append(
            (
                study,
                STUDIES[study].arms[arm],
                ", ".join(map(str, own["seed"])),
                best,
                "the same" if best == last else last,
            )
        )
    return pd.DataFrame(rows, columns=["study", "arm", "seeds", "top-1 of the best weights, %", "of the last, %"])


def tuning(logs: Logs, words) -> pd.DataFrame:
    rows = []
    for run in results.tuning(logs.folder).itertuples():
        label = STUDIES[run.study].arms.get(run.arm) or run.arm.replace("rdrop_", "R-Drop ")
        cells = [f"{run.rate:g}", f"{100 * run.accuracy:.1f}", f"{run.nll:.3f}"]
        rows.append((run.study, label, run.steps, *(Markup(f"**{c}**") if run.chosen else c for c in cells)))
    return pd.DataFrame(rows, columns=["study", "arm", "updates", "rate", "validation top-1, %", "validation NLL"])


def audited(logs: Logs, words) -> pd.DataFrame:
    rows = []
    for run in logs.published["runs"].itertuples():
        alone = f"{run.best_value:.2f} at {run.best_value_step:,}" if run.processes > 1 else "-"
        rows.append(
            (
                run.repository,
                run.started,
                f"{run.processes} x {run.images_per_value:,}",
                alone,
                f"{run.best:.2f} at {run.best_step:,}",
                f"{run.last:.2f} at {run.last_step:,}",
                run.schedule,
            )
        )
    return pd.DataFrame(
        rows,
        columns=[
            "repository",
            "started",
            "processes x images of a value",
            "best of one process",
            "best, whole test set",
            "last, whole test set",
            "schedule",
        ],
    )


def claims(logs: Logs, words) -> pd.DataFrame:
    table = logs.published["claims"].fillna("")
    rows = [
        (c.repository, f"{c.percent:.2f}", c.what, c.supported, f"{c.reached:.2f}", c.rests_on)
        for c in table.itertuples()
    ]
    return pd.DataFrame(
        rows,
        columns=[
            "repository",
            "claim, %",
            "what",
            "supported by its logs",
            "its logs reach, whole test set",
            "where the value stands",
        ],
    )


def literature(logs: Logs, words) -> pd.DataFrame:
    rows = [(model, data, top1, Markup(source), Markup(note)) for model, data, top1, source, note in LITERATURE]
    return pd.DataFrame(rows, columns=["model", "data", "top-1, %", "source", "what to know"])


_PARTS = {
    "step_b16": "step, ViT-B/16, 224 px, 8 images",
    "step_ti16": "step, ViT-Ti/16, 64 px, 64 images",
    "input": "input, 384 px crops",
    "evaluation": "evaluation, ViT-Ti/16, 224 px",
    "start": "start and one step",
}
_WHO = {
    "ours": "here, R-Drop",
    "ours_baseline": "here, one view",
    "pytorch": "PyTorch (timm)",
    "port": "plain Paddle, its own settings",
    "port_tuned": "plain Paddle, our settings",
    "seed_like": "plain Paddle, its own settings",  # what records until November 2026 call the port
    "seed_like_tuned": "plain Paddle, our settings",
    "against": "here, an earlier commit",
    "paddle_vision": "paddle.vision",
    "pillow": "Pillow and NumPy",
}


def speed(logs: Logs, words) -> pd.DataFrame:
    rows = []
    paths = sorted((logs.folder / "bench").glob("*.json"), key=lambda path: [*_PARTS, path.stem].index(path.stem))
    for path in paths:
        part = _PARTS.get(path.stem, path.stem)
        for name, found in json.loads(path.read_text())["competitors"].items():
            if "split" in name:  # views that share blocks have left the code
                continue
            who = "here" if name == "ours" and not path.stem.startswith("step") else _WHO.get(name, name)
            ratio, rate = found["ratio_to_ours"], found.get("images_per_second")
            rows.append(
                (
                    part,
                    who,
                    f"{found['median']:.3g} ({found['lowest']:.3g} to {found['highest']:.3g})",
                    f"{ratio['median']:.3g} ({ratio['lowest']:.3g} to {ratio['highest']:.3g})",
                    f"{rate:,.3g}" if rate else "-",
                    f"{found['memory_peak_bytes'] / 1e9:.2f}",
                    found["n"],
                )
            )
            part = ""
    return pd.DataFrame(rows, columns=["what", "who", "seconds", "time, ours = 1", "images/s", "peak GB", "n"])


def arms_commands(logs: Logs, words) -> pd.DataFrame:
    rows = []
    for (study, arm), own in logs.studies.groupby(["study", "arm"], sort=False):
        run = own.iloc[0]
        threads = f"OMP_NUM_THREADS={run['threads']} "
        rows.append(
            (f"study/{study}-{arm}-seed*", ", ".join(map(str, own["seed"])), code(threads + results.command(run)))
        )
    for _, run in logs.runs[logs.runs["name"].str.startswith("evidence/")].iterrows():
        rows.append((run["name"], run["seed"], code(results.command(run))))
    return pd.DataFrame(rows, columns=["runs", "seeds N", "command"])


TABLES = {
    "first": first,
    "kl": kl,
    "arms": arms,
    "differences": differences,
    "seeds": seeds,
    "tuning": tuning,
    "audit": audited,
    "claims": claims,
    "literature": literature,
    "speed": speed,
    "arms_commands": arms_commands,
}


# ---- pages


def fresh(text: str, name: str, logs: Logs) -> str:
    """The text of a page with its tables as logs/ give them. Raises UserError for markers that do not fit."""
    chinese = CN if name.endswith("_cn.md") else {}
    parts, position = [], 0
    for marker in _MARKER.finditer(text):
        end = text.find(END, marker.end())
        following = _MARKER.search(text, marker.end())
        if end < 0 or marker.start() < position or (following and following.start() < end):
            raise UserError(f"{name}: below the line {marker[0]} the line {END} is missing; restore it")
        if marker[1] not in TABLES:
            raise UserError(f"{name}: there is no table {marker[1]!r}: {near(marker[1], TABLES)}")
        table = TABLES[marker[1]](logs, lambda word: chinese.get(word, word))
        parts += [text[position : marker.end()], f"\n\n{markdown(table)}\n\n"]
        position = end
    return "".join(parts) + text[position:]


def stale_line(old: str, new: str) -> int:
    """The number of the first line in which two texts differ."""
    pairs = zip(old.splitlines(), new.splitlines(), strict=False)
    same = next((number for number, (one, other) in enumerate(pairs) if one != other), None)
    return (min(len(old.splitlines()), len(new.splitlines())) if same is None else same) + 1


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
