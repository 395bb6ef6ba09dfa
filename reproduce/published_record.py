"""logs/published/: what the audit of the published logs gave, so that figures and tables need no raw logs.

    python -m reproduce.published_record                   from the logs of zbp-xxxp/R-Drop-Paddle, downloaded once
    python -m reproduce.published_record LOG_OR_FOLDER...  from these copies of them

audit.json has the figures of each run and the verdict on each claim, accuracy.csv every accuracy, loss.csv the mean
loss over the ranks and over 25 updates at a time.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from common.atomic import atomic_write
from common.errors import UserError
from reproduce import ROOT
from reproduce.cli import Parser, parse, run_command, say
from reproduce.published import Audit, audit, download, read_log, verdicts
from reproduce.visualdl_files import find_logs

FOLDER = ROOT / "logs" / "published"
_UPDATES = 25  # that a row of loss.csv averages
_OF_A_RUN = (
    "name", "started", "ranks", "updates", "evaluations", "wall_hours", "images_per_value", "test_images",
    "best_value_percent", "best_value_step", "best_value_label", "best_value_offset_points", "best_mean_percent",
    "best_mean_step", "last_mean_percent", "last_mean_step", "first_loss", "loss_factor", "implied_accumulation",
    "warm_up", "epoch_updates", "epochs", "images_per_update",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class PublishedRecord:
    """The audited runs, each a dict with the fields of log_audit.Audit, and the verdicts on the claims."""

    runs: list[dict]
    verdicts: list[dict]  # claim's fields, supported ("yes", "no", "cannot tell"), why
    accuracy: pd.DataFrame  # run, step, rank, percent, separated (the value is known to be of that rank)
    loss: pd.DataFrame  # run, step (the last that the row averages), loss


def write_record(audits: list[Audit], folder: Path = FOLDER) -> None:
    """Write the three files; the same audits give the same bytes, wherever their logs lie."""
    runs = []
    for run in audits:
        files = [{"name": log.path.name, "sha256": log.sha256} for log in run.files]
        runs.append({name: _rounded(getattr(run, name)) for name in _OF_A_RUN} | {"files": files})
    judged = [
        {**dataclasses.asdict(verdict.claim), "supported": verdict.supported, "why": verdict.why}
        for verdict in verdicts(audits)
    ]
    with atomic_write(folder / "audit.json", "w") as file:
        json.dump({"runs": runs, "verdicts": judged}, file, indent=1, allow_nan=False)
        file.write("\n")
    for name, table in (("accuracy", _accuracies(audits)), ("loss", _losses(audits))):
        with atomic_write(folder / f"{name}.csv", "w") as file:
            table.to_csv(file, index=False, lineterminator="\n")


def _rounded(value):
    return round(value, 6) if isinstance(value, float) else value


def _accuracies(audits: list[Audit]) -> pd.DataFrame:
    tables = []
    for run in audits:
        curves = run.accuracy
        tables.append(
            pd.DataFrame(
                {
                    "run": run.name,
                    "step": np.repeat(curves.steps, len(curves.labels)),
                    "rank": list(curves.labels) * len(curves.steps),
                    "percent": np.round(100 * curves.values.ravel(), 4),
                    "separated": curves.separated.ravel().astype(int),
                }
            )
        )
    return pd.concat(tables, ignore_index=True)


def _losses(audits: list[Audit]) -> pd.DataFrame:
    tables = []
    for run in audits:
        block = (run.loss.steps - 1) // _UPDATES
        means = pd.Series(run.loss.means).groupby(block).mean()
        tables.append(
            pd.DataFrame({"run": run.name, "step": _UPDATES * (means.index + 1), "loss": means.round(4).to_numpy()})
        )
    return pd.concat(tables, ignore_index=True)


def read_record(folder: Path = FOLDER) -> PublishedRecord:
    """Read what `write_record` wrote. Raises UserError for a file that is missing or not whole."""
    folder = Path(folder)
    try:
        record = json.loads((folder / "audit.json").read_text())
        accuracy, loss = (pd.read_csv(folder / f"{name}.csv") for name in ("accuracy", "loss"))
        accuracy["separated"] = accuracy["separated"].astype(bool)
        return PublishedRecord(record["runs"], record["verdicts"], accuracy, loss)
    except (OSError, ValueError, KeyError) as problem:
        raise UserError(f"{folder}: the record of the published logs is not whole ({problem}); write it again with "
                        "python -m reproduce.published_record") from None  # fmt: skip


def main(argv=None) -> None:
    parser = Parser(prog="python -m reproduce.published_record", description="Write logs/published/ from an audit.")
    parser.add_argument("logs", nargs="*", metavar="LOG", help="record files or folders of them; without one those "
                        "that zbp-xxxp/R-Drop-Paddle published, downloaded where missing")  # fmt: skip
    options = parse(parser, argv)
    paths, problems = find_logs(options.logs) if options.logs else download()
    if problems:  # a record of a part would pass for the whole
        raise UserError(problems[0])
    write_record(audit([read_log(path) for path in paths]))
    say("written", f"{FOLDER.relative_to(ROOT)}/: audit.json, accuracy.csv, loss.csv")


if __name__ == "__main__":
    run_command(main)
