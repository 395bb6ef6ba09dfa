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
from reproduce.audit import ZBP, ZPC, audit, images_per_value, main, read_log, read_record

PUBLISHED = SHARED / "published_logs"
BEGAN = 1_700_000_000  # seconds of the first record of every log made here: 2023-11-14


def write_log(path, records, unit=1000):
    """A record file of (tag, step, value, seconds after BEGAN) as VisualDL writes it; unit 1: stamps in seconds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for tag, step, value, seconds in records:
            message = scalar(tag, value, step, round(unit * (BEGAN + seconds))).SerializeToString()
            file.write(len(message).to_bytes(8, "little") + message)
    return path


def make_log(path, shares, ranks=None, later=0.0, scale=1.0):
    """A log of `shares`, (evaluations, ranks), every 10 updates of 2 s; `ranks`: who writes into this file."""
    ranks = range(shares.shape[1]) if ranks is None else ranks
    records = [
        ("test/accuracy", 10 * (number + 1), scale * row[rank], 20 * (number + 1) + later + 0.01 * rank)
        for number, row in enumerate(shares)
        for rank in ranks
    ]
    return write_log(path, records)


def random_shares(ranks=3, images=400, evaluations=40, seed=0):
    counts = np.random.default_rng(seed).integers(200, 300, (evaluations, ranks))
    return counts / images


# ---- files


def test_what_logwriter_writes_is_read(tmp_path):
    with LogWriter(logdir=str(tmp_path), file_name="vdlrecords.7.log") as writer:
        writer.add_hparams({"alpha": 0.3}, ["test/accuracy"])
        writer.add_scalar("train/loss", 4.5, 1)
        writer.add_scalar("train/loss", 4.25, 1)
        writer.add_scalar("test/accuracy", 0.75, 3)
    log = read_log(tmp_path / "vdlrecords.7.log")
    assert set(log.scalars) == {"train/loss", "test/accuracy"}
    assert log.scalars["train/loss"][["step", "value"]].to_numpy().tolist() == [[1, 4.5], [1, 4.25]]


def test_stamps_in_seconds_and_in_milliseconds_are_the_same_time(tmp_path):
    for unit in (1, 1000):
        log = read_log(write_log(tmp_path / str(unit), [("a", 1, 1.0, 0), ("a", 2, 1.0, 13)], unit))
        assert log.scalars["a"]["time"].tolist() == [BEGAN, BEGAN + 13]


def test_files_that_are_no_logs_are_refused_in_one_line(tmp_path):
    whole = make_log(tmp_path / "runs" / "vdlrecords.1.log", random_shares()).read_bytes()
    (tmp_path / "text").write_text("step,accuracy\n")
    (tmp_path / "cut").write_bytes(whole[:-3])
    (tmp_path / "empty").mkdir()
    os.mkfifo(tmp_path / "pipe")
    last = whole.rindex(b"test/accuracy")
    for name, fragment in (
        ("text", "no VisualDL record file, or damaged at byte 0"),
        ("cut", f"no VisualDL record file, or damaged at byte {whole.rindex(bytes(7), 0, last) - 1:,}"),
        ("empty", "a folder, not a file"),
        ("pipe", "not a regular file but a pipe"),
        ("none", "no such file"),
    ):
        with pytest.raises(UserError, match=f"{name}: {fragment}"):
            main([str(tmp_path / name)])


def test_accuracies_that_are_none_are_refused(tmp_path):
    loss = read_log(write_log(tmp_path / "a", [("test/accuracy", 1, 512.0, 0)]))
    with pytest.raises(UserError, match="the value 512, which is neither a share nor a percentage"):
        audit([loss])
    with pytest.raises(UserError, match=r"has no scalar acc \(it has test/accuracy\); name one with --accuracy_tag"):
        audit([loss], accuracy_tag="acc")
    (tmp_path / "nothing").touch()
    with pytest.raises(UserError, match=r"has no scalar test/accuracy \(it has none\)"):
        audit([read_log(tmp_path / "nothing")])
    twice = [("test/accuracy", step, 0.5, second) for second, step in enumerate([10, 20, 30, 10, 20])]
    with pytest.raises(UserError, match="holds more than one run: test/accuracy begins again at step 10"):
        audit([read_log(write_log(tmp_path / "b", twice))])


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
    run, _ = audit([read_log(make_log(tmp_path / "vdlrecords.1.log", shares, scale=scale))])
    means = 100 * shares.mean(axis=1)
    assert (run["processes"], run["images_per_value"], run["test_images"], run["evaluations"]) == (3, 400, 1200, 40)
    assert run["best"] == pytest.approx(means.max(), abs=1e-4)
    assert run["best_step"] == 10 * (means.argmax() + 1)
    assert run["last"] == pytest.approx(means[-1], abs=1e-4)
    assert run["best_value"] == pytest.approx(100 * shares.max())
    assert run["started"] == "2023-11-14" and run["hours"] == pytest.approx(39 * 20 / 3600, abs=0.01)


def test_the_files_of_a_run_are_audited_together_and_no_others(tmp_path):
    shares = random_shares()
    one, copy, other, another = (
        read_log(make_log(tmp_path / name / "vdlrecords.1.log", values, ranks, later))
        for name, values, ranks, later in (
            ("one", shares, [0, 2], 0),
            ("copy", shares, [0, 2], 0),
            ("other", shares, [1], 0),
            ("another", random_shares(seed=1), [1], 5000),
        )
    )
    run, accuracy = audit([one, other])
    assert run["run"] == "1 + 1" and run["processes"] == 3 and len(accuracy) == 40
    assert run["best"] == pytest.approx(100 * shares.mean(axis=1).max(), abs=1e-4)
    for wrong in (copy, another):
        with pytest.raises(UserError, match=r"1\.log: is a copy of .*, or of another run; give the files of one run"):
            audit([one, wrong])


def test_a_step_that_a_process_lost_is_left_out(tmp_path):
    shares = random_shares()
    shares[7] = 0.9  # would be the best
    path = make_log(tmp_path / "vdlrecords.1.log", shares)
    records = read_log(path).scalars["test/accuracy"]
    lost = records[~((records["step"] == 80) & (records.index % 3 == 0))]
    rows = [("test/accuracy", row.step, row.value, row.time - BEGAN) for row in lost.itertuples()]
    run, _ = audit([read_log(write_log(tmp_path / "vdlrecords.2.log", rows))])
    assert run["evaluations"] == 39 and run["best"] < 90


def test_equal_best_values_are_counted(tmp_path):
    shares = random_shares(ranks=1)
    shares[[5, 9]] = 0.95
    run, _ = audit([read_log(make_log(tmp_path / "vdlrecords.1.log", shares))])
    assert (run["best_step"], run["best_times"]) == (60, 2)


# ---- the real ones


def test_the_record_is_what_the_audit_of_the_raw_logs_gives():
    if not PUBLISHED.is_dir():
        pytest.skip(f"the published logs are not at {PUBLISHED}")
    logs = {log.sha256: log for log in map(read_log, PUBLISHED.rglob("vdlrecords.*"))}
    record = read_record()
    columns = record["accuracy"].columns
    for row in record["runs"].drop(columns=["repository", "schedule"]).to_dict("records"):
        found, accuracy = audit([logs[digest] for digest in row["sha256"].split()])
        assert found == row
        recorded = record["accuracy"][record["accuracy"]["run"] == row["run"]].reset_index(drop=True)
        pd.testing.assert_frame_equal(accuracy[columns], recorded, check_exact=True)


def test_what_the_published_logs_reach_on_all_test_images():
    runs = read_record()["runs"].set_index("run")
    four = runs.loc["1633182432 + 1633182433"]
    assert (four["processes"], four["images_per_value"], four["test_images"]) == (4, 2500, 10_000)
    assert (four["best"], four["best_step"], four["best_value"]) == (93.01, 7600, 93.92)
    assert (runs.loc["1629277487", "best"], runs.loc["1629277487", "processes"]) == (93.40, 1)
    zpc = runs[runs["repository"] == ZPC]
    assert zpc[["best", "last"]].to_numpy().tolist() == [[92.71, 92.46], [92.66, 92.55]]


def test_the_command_prints_the_finding(tmp_path, capsys):
    main([str(make_log(tmp_path / "vdlrecords.1.log", random_shares()))])
    assert re.search(r"^images_per_value +400\ntest_images +1200$", capsys.readouterr().out, re.MULTILINE)


def test_what_is_said_of_the_claims_is_what_the_runs_have():
    record = read_record()
    for claim in record["claims"].itertuples():
        runs = record["runs"][record["runs"]["repository"] == claim.repository]
        values = runs["last" if claim.moment == "end" else "best"].round(2)
        assert claim.reached == values.max()
        expected = "no" if values.max() < claim.percent else "cannot tell"
        assert claim.supported == ("yes" if (values == claim.percent).any() else expected)
        parts = runs[(runs["processes"] > 1) & (runs["best_value"].round(2) == claim.percent)]
        rests_on = [f"one of 4 processes, 2,500 images, step {step:,}" for step in parts["best_value_step"]]
        assert claim.rests_on == "".join(rests_on)
    assert len(record["claims"][record["claims"]["repository"] == ZBP]) == 5


def test_the_mean_of_googles_runs_is_that_of_its_six_runs():
    literature = read_record()["literature"].set_index(["model", "source"])
    google = literature[literature["note"].str.startswith("its six runs")].iloc[0]
    runs = [float(value) for value in re.findall(r"\d\d\.\d\d", google["note"])]
    assert len(runs) == 6 and google["top1"] == f"{np.mean(runs):.2f} (SD {np.std(runs, ddof=1):.2f})"


# ---- odd and hostile files


@pytest.mark.parametrize("stamp", [0, -5, 2**62, 2**63 - 1])
def test_times_of_no_calendar_are_some_day_and_no_traceback(tmp_path, stamp, capsys):
    with open(tmp_path / "vdlrecords.1.log", "wb") as file:
        for step in (1, 2**62):
            message = scalar("test/accuracy", 0.5, step, stamp).SerializeToString()
            file.write(len(message).to_bytes(8, "little") + message)
    main([str(tmp_path / "vdlrecords.1.log")])
    printed = capsys.readouterr().out
    assert re.search(rf"^last_step +{2**62}$", printed, re.MULTILINE)
    assert re.search(r"^started +[-\d]+$", printed, re.MULTILINE)


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1])
def test_accuracies_that_are_no_numbers_are_refused(tmp_path, value):
    log = read_log(write_log(tmp_path / "a", [("test/accuracy", 1, 0.5, 0), ("test/accuracy", 2, value, 1)]))
    with pytest.raises(UserError, match=r"has the value .*neither a share nor a percentage"):
        audit([log])


def test_names_of_scalars_do_not_steer_the_screen(tmp_path):
    log = read_log(write_log(tmp_path / "a", [("\x1b[31mred\nline", 1, 0.5, 0)]))
    with pytest.raises(UserError, match=r"it has \\x1b\[31mred\\nline\)"):
        audit([log])
