"""The audit of VisualDL logs: on logs of known making, on the real published ones, on files that are none."""

import math
import os
import re

import numpy as np
import pandas as pd
import pytest
from conftest import SHARED
from visualdl import LogWriter
from visualdl.component.base_component import scalar

from common.errors import UserError
from reproduce import ROOT
from reproduce.audit import audit, images_per_value, main, read_accuracies

PUBLISHED = SHARED / "published_logs"
ZBP, ZPC = "zbp-xxxp/R-Drop-Paddle", "zpc-666/Paddle-R-Drop"


def table(page, heading):
    """The first table below a heading of a page, as one dict a row."""
    section = (ROOT / page).read_text().split(f"\n## {heading}\n")[1]
    lines = re.search(r"(^\|.*\n)+", section, re.MULTILINE)[0].splitlines()
    columns, _, *rows = ([cell.strip() for cell in line[1:-1].split(" | ")] for line in lines)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def write_log(path, records, tag="test/accuracy"):
    """A record file of (step, value) as VisualDL writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for step, value in records:
            message = scalar(tag, value, step, 0).SerializeToString()
            file.write(len(message).to_bytes(8, "little") + message)
    return path


def make_log(path, shares, scale=1.0):
    """A log of `shares`, (evaluations, processes that write into this file), every 10 updates."""
    steps = range(10, 10 * len(shares) + 1, 10)
    return write_log(path, [(step, scale * value) for step, row in zip(steps, shares, strict=True) for value in row])


def random_shares(processes=3, images=400, evaluations=40):
    return np.random.default_rng(0).integers(200, 300, (evaluations, processes)) / images


# ---- files


def test_what_logwriter_writes_is_read(tmp_path):
    with LogWriter(logdir=str(tmp_path), file_name="vdlrecords.7.log") as writer:
        writer.add_hparams({"alpha": 0.3}, ["test/accuracy"])
        writer.add_scalar("train/loss", 4.5, 1)
        writer.add_scalar("test/accuracy", 0.5, 1)
        writer.add_scalar("test/accuracy", 0.75, 3)
    table = read_accuracies(tmp_path / "vdlrecords.7.log")
    assert table.to_numpy().tolist() == [[1, 0.5], [3, 0.75]]


def test_files_that_are_no_logs_are_refused_in_one_line(tmp_path):
    whole = make_log(tmp_path / "whole", random_shares()).read_bytes()
    (tmp_path / "text").write_text("step,accuracy\n")
    (tmp_path / "cut").write_bytes(whole[:-3])
    (tmp_path / "huge").write_bytes((1 << 50).to_bytes(8, "little") + whole)
    (tmp_path / "nothing").touch()
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for name, fragment in (
        ("text", "no VisualDL record file with a scalar test/accuracy, or damaged; get it again"),
        ("cut", "no VisualDL record file"),
        ("huge", "no VisualDL record file"),
        ("nothing", "no VisualDL record file with a scalar test/accuracy"),
        ("empty", "a folder, not a file"),
        ("pipe", "not a regular file but a pipe"),
        ("none", "no such file"),
    ):
        with pytest.raises(UserError, match=f"{name}: {fragment}") as error:
            main([str(tmp_path / name)])
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [512, math.nan, math.inf, -0.1])
def test_values_that_are_no_accuracies_are_refused(tmp_path, value):
    log = write_log(tmp_path / "a", [(1, 0.5), (2, value)])
    with pytest.raises(UserError, match="neither shares nor percentages; get the file again"):
        audit([log])


def test_a_log_without_accuracies_is_refused(tmp_path):
    log = write_log(tmp_path / "a", [(1, 0.5)], tag="train/accuracy")
    with pytest.raises(UserError, match="no VisualDL record file with a scalar test/accuracy"):
        audit([log])


# ---- what a value was counted on


@pytest.mark.parametrize("images", [50, 500, 2500, 10_000, 50_000])
def test_the_unit_of_an_accuracy_tells_its_images(images):
    counts = np.random.default_rng(images).integers(1, images, 60)
    assert images_per_value((counts / images).astype(np.float32).astype(float)) == images


def test_no_unit_is_made_up():
    assert images_per_value([0.8, 0.81, 0.82]) is None  # 1/100 by chance?
    assert images_per_value(np.random.default_rng(0).random(60).astype(np.float32).astype(float)) is None


@pytest.mark.parametrize("scale", [1.0, 100.0])
def test_the_accuracy_of_several_processes_is_their_mean(tmp_path, scale):
    shares = random_shares()
    run, _ = audit([make_log(tmp_path / "vdlrecords.1.log", shares, scale)])
    means = 100 * shares.mean(axis=1)
    assert (run["processes"], run["images_per_value"], run["test_images"], run["evaluations"]) == (3, 400, 1200, 40)
    assert (run["best"], run["last"]) == pytest.approx((means.max(), means[-1]), abs=1e-4)
    assert (run["best_step"], run["last_step"]) == (10 * (means.argmax() + 1), 400)
    assert run["best_value"] == pytest.approx(100 * shares.max())


def test_the_files_of_a_run_are_audited_together_each_once(tmp_path):
    shares = random_shares()
    one, other = make_log(tmp_path / "1.log", shares[:, [0, 2]]), make_log(tmp_path / "2.log", shares[:, [1]])
    run, steps = audit([one, other])
    assert run["processes"] == 3 and len(steps) == 40
    assert run["best"] == pytest.approx(100 * shares.mean(axis=1).max(), abs=1e-4)
    copy = make_log(tmp_path / "copy" / "1.log", shares[:, [0, 2]])
    with pytest.raises(UserError, match=r"two of these files are the same; give each once"):
        audit([one, copy])


def test_a_file_of_two_runs_is_refused(tmp_path):
    log = write_log(tmp_path / "a", [(step, 0.5) for step in (10, 20, 30, 10, 20)])
    with pytest.raises(UserError, match="its steps go back, as in several runs; give files of one run each"):
        audit([log])


def test_a_step_that_a_process_lost_is_left_out(tmp_path):
    shares = random_shares()
    shares[7] = 0.9  # would be the best
    records = read_accuracies(make_log(tmp_path / "1.log", shares))
    lost = records.drop(records.index[records["step"] == 80][0])
    run, _ = audit([write_log(tmp_path / "2.log", lost.itertuples(index=False))])
    assert run["evaluations"] == 39 and run["best"] < 90


# ---- the real ones


def read_record(name: str = "runs") -> pd.DataFrame:
    """What audits of the published logs gave: runs, or the accuracy of their steps."""
    return pd.read_csv(ROOT / "logs" / "published" / f"{name}.csv", dtype={"run": str})


def test_the_record_is_what_the_audit_of_the_raw_logs_gives():
    if not PUBLISHED.is_dir():
        pytest.skip(f"the published logs are not at {PUBLISHED}")
    accuracy = read_record("accuracy")
    for run in read_record().to_dict("records"):
        files = [next(PUBLISHED.rglob(f"vdlrecords.{name}.log")) for name in run["run"].split(" + ")]
        found, steps = audit(files)
        assert found == {name: run[name] for name in found}
        recorded = accuracy.query("run == @run['run']").set_index("step")[steps.columns]
        pd.testing.assert_frame_equal(steps, recorded, check_exact=True)


def test_what_the_published_logs_reach_on_all_test_images():
    runs = read_record().set_index("run")
    four = runs.loc["1633182432 + 1633182433"]
    assert (four["processes"], four["images_per_value"], four["test_images"]) == (4, 2500, 10_000)
    assert (four["best"], four["best_step"], four["best_value"]) == (93.01, 7600, 93.92)
    assert (runs.loc["1629277487", "best"], runs.loc["1629277487", "processes"]) == (93.40, 1)
    zpc = runs[runs["repository"] == ZPC]
    assert zpc[["best", "last"]].to_numpy().tolist() == [[92.71, 92.46], [92.66, 92.55]]


def test_the_command_prints_the_finding_and_what_it_assumes(tmp_path, capsys):
    log = make_log(tmp_path / "vdlrecords.1.log", random_shares())
    main([str(log)])
    printed = capsys.readouterr().out
    assert printed.startswith("files taken for one run, the values of a step for those of its processes\n")
    assert re.search(r"^images_per_value +400\ntest_images +1200$", printed, re.MULTILINE)
    main([str(make_log(tmp_path / "few", random_shares(evaluations=1)))])
    assert capsys.readouterr().out.count("cannot tell\n") == 2


def test_the_table_of_the_published_logs_is_what_the_runs_have():
    expected = [
        {
            "repository": run.repository,
            "started": run.started,
            "processes x images of a value": f"{run.processes} x {run.images_per_value:,}",
            "best of one process": f"{run.best_value:.2f} at {run.best_value_step:,}" if run.processes > 1 else "-",
            "best, whole test set": f"{run.best:.2f} at {run.best_step:,}",
            "last, whole test set": f"{run.last:.2f} at {run.last_step:,}",
            "schedule": run.schedule,
        }
        for run in read_record().itertuples()
    ]
    assert table("docs/audit.md", "The logs") == expected


def test_what_is_said_of_the_claims_is_what_the_runs_have():
    record, claims = read_record(), table("docs/audit.md", "The claims")
    for claim in claims:
        runs = record[record["repository"] == claim["repository"]]
        values = runs["last" if "at the end of training" in claim["what"] else "best"].round(2)
        percent = float(claim["claim, %"])
        assert float(claim["its logs reach, whole test set"]) == values.max()
        expected = "no" if values.max() < percent else "cannot tell"
        assert claim["supported by its logs"] == ("yes" if (values == percent).any() else expected)
        parts = runs[(runs["processes"] > 1) & (runs["best_value"].round(2) == percent)]
        rests_on = [f"one of 4 processes, 2,500 images, step {step:,}" for step in parts["best_value_step"]]
        assert claim["where the value stands"] == "".join(rests_on)
    assert [claim["repository"] for claim in claims] == 5 * [ZBP] + 3 * [ZPC]


def test_what_others_reach_stands_alike_in_the_first_table_and_on_the_pages():
    literature = table("docs/results.md", "What others reach")
    (google,) = [row for row in literature if row["what to know"].startswith("its six runs")]
    runs = [float(value) for value in re.findall(r"\d\d\.\d\d", google["what to know"])]
    assert len(runs) == 6 and google["top-1, %"] == f"{np.mean(runs):.2f} (SD {np.std(runs, ddof=1):.2f})"
    paper = {
        row["model"]: row["top-1, %"] for row in literature if (row["source"], row["data"][:5]) == ("paper", "CIFAR")
    }
    best = read_record().groupby(["repository", "processes"])["best"].max()
    zbp = f"{best[ZBP, 4]:.2f} (zbp, mean of 4 processes), {best[ZPC, 1]:.2f} (zpc, best on the test set)"
    rdrop, plain = re.findall(r"^\| ViT-B/16.*CIFAR-100, 384 px.*$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert f" | **{paper['ViT-B/16 + R-Drop']}** | {zbp} | " in rdrop
    assert f" | {paper['ViT-B/16']} | {google['top-1, %'].split()[0]} (Google, mean of 6) | " in plain
