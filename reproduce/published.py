"""What published VisualDL logs say, and which published accuracies they support.

    python -m reproduce.published                      the logs that zbp-xxxp/R-Drop-Paddle published, downloaded once
    python -m reproduce.published LOG_OR_FOLDER...     any logs with train/loss and test/accuracy
    python -m reproduce.published --json -             the same for machines

Everything comes from the record files; only the claims, in claims.py, are written down with their sources.
"""

import dataclasses
import json
import math
import sys
from pathlib import Path

import numpy as np

from common.atomic import atomic_write
from common.errors import UserError
from data import DOWNLOADS
from data.download import fetch
from reproduce.claims import CLAIMS, Verdict, verdicts
from reproduce.cli import Parser, parse, run_command, say
from reproduce.log_audit import Audit, Settings, audit, check
from reproduce.visualdl_files import PublishedLog, find_logs, read_log

__all__ = [
    "CLAIMS", "Audit", "PublishedLog", "Settings", "Verdict", "audit", "download", "published_files", "read_log",
    "verdicts",
]  # fmt: skip

_HOST = "https://raw.githubusercontent.com/zbp-xxxp/R-Drop-Paddle/"
_FOLDER = DOWNLOADS / "published_logs"
_SOURCES = (  # file, commit that holds it in log/, SHA-256; two are no longer in the repository's newest commit
    (
        "vdlrecords.1629277487.log",
        "a10c913e17cbb62ec5bd276c9f68f966a10a4ca3",
        "dd689355b67a988ee066d8e46a7b35e6f0efdda57561e5b7558556c355bb57dc",
    ),
    (
        "vdlrecords.1633182432.log",
        "5b9b02be54eded2dba71b38c284e8da074a7bfcd",
        "a2878ef386b0706307c1e23c6e07211ad6072f61b04a5b5a0ab03c4348cbe06e",
    ),
    (
        "vdlrecords.1633182433.log",
        "5b9b02be54eded2dba71b38c284e8da074a7bfcd",
        "8c238b8061de8959a9d1b89bbebbb71bc90ead2a401991ec27ec2be5a604cf3f",
    ),
    (
        "vdlrecords.1633942646.log",
        "bed5619a838904cc113ffd19119159dc4dd424f3",
        "84f5d47e7c08890e555682e6810fe77aa5d75fbbf96a9879367261d8ded134d8",
    ),
)


def published_files() -> list[Path]:
    """Where `download` puts the logs of zbp-xxxp/R-Drop-Paddle: a folder each, for VisualDL shows one file a folder."""
    return [_FOLDER / name.split(".")[1] / name for name, *_ in _SOURCES]


def download() -> tuple[list[Path], list[str]]:
    """Fetch the published logs that are missing: (those that are there and right, what is amiss with the others)."""
    there, problems, stopped = [], [], False
    for path, (name, commit, sha256) in zip(published_files(), _SOURCES, strict=True):
        if stopped and not path.exists():
            problems.append(f"{path}: not tried after that; its address is {_HOST}{commit}/log/{name}")
            continue
        try:
            there.append(fetch(f"{_HOST}{commit}/log/{name}", path, sha256=sha256))
        except UserError as problem:
            problems.append(str(problem))
            stopped = problem.__cause__ is not None  # network or disk: the same for the next file
    return there, problems


def main(argv=None) -> None:
    options = parse(_parser(), argv)
    settings = Settings(**{field.name: getattr(options, field.name) for field in dataclasses.fields(Settings)})
    if settings.classes < 2 or settings.train_images < 1:
        raise UserError("--classes must be at least 2 and --train_images at least 1")
    paths, problems = find_logs(options.logs)
    if options.download or not options.logs:
        there, amiss = download()
        paths, problems = paths + there, problems + amiss
    logs = []
    for path in paths:
        try:
            logs.append(read_log(path))
            check(logs[-1], settings)
        except UserError as problem:
            problems.append(str(problem))
            logs = [log for log in logs if log.path != path]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr, flush=True)
    if logs:
        audits = audit(logs, settings)
        judged = verdicts(audits)
        text = json.dumps(_as_json(audits, judged, problems), indent=1, allow_nan=False) if options.json else ""
        if options.json == "-":
            print(text)
        else:
            _print_all(audits, judged, settings)
        if options.json not in (None, "-"):
            with atomic_write(options.json, "w") as file:
                file.write(text + "\n")
            say("json", options.json)
    if problems:
        raise UserError(f"{len(problems)} of the files or folders could not be used, each named above")


def _parser() -> Parser:
    parser = Parser(
        prog="python -m reproduce.published",
        description="Audit VisualDL logs: how many ranks wrote them, on how many images an accuracy was counted, what "
        "loss and clock tell; and which published accuracies they support.",
        epilog="A file that cannot be used is named, the others are still audited, and the exit code is 2.",
    )
    parser.add_argument("logs", nargs="*", metavar="LOG", help="VisualDL record file, or folder: every vdlrecords file "
                        "in it; without one those that zbp-xxxp/R-Drop-Paddle published")  # fmt: skip
    parser.add_argument("--download", action="store_true", help="audit those, fetched where missing, beside LOG")
    parser.add_argument("--json", metavar="FILE", help="write everything as JSON to FILE too; - prints only the JSON")
    for name, meaning in {
        "loss_tag": "scalar of the training loss",
        "accuracy_tag": "scalar of the test accuracy, shares or percentages",
        "rate_tag": "scalar of the learning rate, where there is one",
        "classes": "an untrained network has the loss ln(classes)",
        "train_images": "what an epoch reads once",
    }.items():
        default = getattr(Settings(), name)
        parser.add_argument(f"--{name}", type=type(default), default=default, help=f"{meaning} (default {default})")
    return parser


def _print_all(audits: list[Audit], judged: list[Verdict], settings: Settings) -> None:
    columns = "run|started (UTC)|ranks|updates|hours|evaluations|images a value|best value|best mean|last mean"
    print(f"| {columns.replace('|', ' | ')} |\n|{'---|' * len(columns.split('|'))}")
    for run in audits:
        mean = f"{run.best_mean_percent:.2f} at {run.best_mean_step:,}" if run.ranks > 1 else "-"
        row = (run.name, run.started, run.ranks, f"{run.updates:,}", f"{run.wall_hours:.1f}",
               f"{run.evaluations} x {run.ranks}", f"{run.images_per_value or 'cannot tell'}",
               f"{run.best_value_percent:.2f} at {run.best_value_step:,}", mean,
               f"{run.last_mean_percent:.2f} at {run.last_mean_step:,}")  # fmt: skip
        print(f"| {' | '.join(map(str, row))} |")
    for run in audits:
        print(f"\n{run.name}")
        for what, text in _describe(run, settings):
            say(what, text)
    print("\nPublished claims: do these logs support them?")
    for verdict in judged:
        claim = verdict.claim
        print(f"{claim.percent:.2f}  {verdict.supported.upper()}: {claim.what} ({claim.source}). {verdict.why}")


def _describe(run: Audit, settings: Settings):
    """(what, text) lines about one run."""
    for log in run.files:
        yield "file", f"{log.path}: {'; '.join(map(_count, log.scalars.values()))}"
    for copy in run.copies:
        yield "left out", f"{copy}: all it holds is in a file above"
    if not run.images_per_value:
        yield "unit", "cannot tell: too few different accuracies, or none that they all are multiples of"
    else:
        yield "unit", f"every accuracy is a multiple of 1/{run.images_per_value}: counted on that many images" + (
            "" if run.ranks == 1 else f"; {run.test_images:,} over the ranks, taken to be disjoint as the values differ"
            if run.test_images != run.images_per_value else "; the same ones on every rank"
        )  # fmt: skip
    yield "best value", f"{run.best_value_percent:.2f} % at step {run.best_value_step:,} ({run.best_value_label})"
    if run.ranks > 1:
        yield "best mean", f"{run.best_mean_percent:.2f} % over {run.ranks} ranks at step {run.best_mean_step:,}"
    each = ", ".join(f"{value:.2f}" for value in run.last_values_percent)
    yield "last", f"{run.last_mean_percent:.2f} % at step {run.last_mean_step:,}" + f" ({each})" * (run.ranks > 1)
    for curves in (run.accuracy, run.loss) if run.ranks > 1 else ():
        for sentence in curves.evidence:
            yield "ranks", f"{curves.tag}, {sentence}"
    scale = f"begins at {run.first_loss:.2f} = {run.loss_factor:.2f} x ln({settings.classes}): "
    if run.implied_accumulation is None:
        yield "loss", scale + "not near a power of 2, which implies nothing"
    elif run.implied_accumulation == 1:
        yield "loss", scale + "not scaled"
    else:
        yield "loss", scale + (f"scaled by {run.implied_accumulation}, the steps of accumulation if it averages its "
                               "views (half of them if it adds two)")  # fmt: skip
    yield "warm-up", run.warm_up
    if run.epoch_updates:
        least, most = run.images_per_update
        yield "epochs", (f"{run.epochs:.1f}: the loss repeats every {run.epoch_updates:,} updates, so all epochs have "
                         f"one order; {least:,} to {most:,} of {settings.train_images:,} images an update")  # fmt: skip
    else:
        yield "epochs", "not detectable: the loss does not repeat, or was not logged at every update"
    speed = f"{run.updates_per_second:.4f} updates/s" if run.updates_per_second else "all records of one moment"
    yield "time", f"{run.wall_hours:.2f} h, {speed}, evaluation included"


def _count(scalar) -> str:
    odd = scalar.odd_steps
    but = f" (another number at {len(odd):,} of the steps, first at {odd[0]:,})" if odd else ""
    return f"{scalar.tag} {len(scalar.steps):,} values of {scalar.writers} writer{'s' * (scalar.writers > 1)}{but}"


def _as_json(audits: list[Audit], judged: list[Verdict], problems: list[str]) -> dict:
    return {
        "runs": [_run_as_json(run) for run in audits],
        "verdicts": [dataclasses.asdict(verdict) for verdict in judged],
        "unusable": problems,
    }


def _run_as_json(run: Audit) -> dict:
    """All figures of a run; the curves of the accuracy, of the loss only what separates its ranks."""
    plain = {name: value for name, value in vars(run).items() if name not in ("files", "copies", "accuracy", "loss")}
    for name, value in plain.items():
        if isinstance(value, float) and not math.isfinite(value):  # JSON has no NaN
            plain[name] = None
    plain["files"] = [
        {"path": str(log.path), "sha256": log.sha256,
         "scalars": {tag: {"values": len(scalar.steps), "writers": scalar.writers, "odd_steps": scalar.odd_steps}
                     for tag, scalar in log.scalars.items()}}
        for log in run.files
    ]  # fmt: skip
    plain["copies"] = [str(path) for path in run.copies]
    for name, curves in (("accuracy", run.accuracy), ("loss", run.loss)):
        plain[name] = {"tag": curves.tag, "ranks": curves.labels, "evidence": curves.evidence}
    plain["accuracy"] |= {
        "steps": run.accuracy.steps.tolist(),
        "percent": np.round(100 * run.accuracy.values, 4).tolist(),  # a list of ranks at each step
        "separated": run.accuracy.separated.tolist(),
    }
    return plain


if __name__ == "__main__":
    run_command(main)
