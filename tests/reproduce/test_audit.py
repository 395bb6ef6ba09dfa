"""The audit of VisualDL logs: on logs of known making, on the real published ones, on files that are none."""

import math
import os
import re
import shutil

import numpy as np
import pandas as pd
import pytest
from conftest import SHARED
from visualdl import LogWriter
from visualdl.component.base_component import scalar

from common.errors import UserError
from reproduce import ROOT
from reproduce.audit import (
    ZBP,
    ZPC,
    audit,
    describe_schedule,
    find_logs,
    images_per_value,
    judge,
    main,
    read_log,
    read_record,
)

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
    (tmp_path / "nothing").touch()
    last = whole.rindex(b"test/accuracy")
    for name, fragment in (
        ("text", "no VisualDL record file, or damaged at byte 0"),
        ("cut", f"no VisualDL record file, or damaged at byte {whole.rindex(bytes(7), 0, last) - 1:,}"),
        ("nothing", "a VisualDL record file without scalars"),
    ):
        with pytest.raises(UserError, match=f"{name}: {fragment}"):
            read_log(tmp_path / name)
    for name in ("empty", "none"):
        with pytest.raises(UserError, match=f"{name}: neither a file nor a folder with VisualDL record files"):
            main([str(tmp_path / name)])
    assert len(find_logs([tmp_path / "runs", tmp_path / "runs" / "vdlrecords.1.log"])) == 1


def test_accuracies_that_are_none_are_refused(tmp_path):
    loss = read_log(write_log(tmp_path / "a", [("test/accuracy", 1, 512.0, 0)]))
    with pytest.raises(UserError, match="the value 512, which is neither a share nor a percentage"):
        audit([loss])
    with pytest.raises(UserError, match=r"has no scalar acc \(it has test/accuracy\); name one with --accuracy_tag"):
        audit([loss], accuracy_tag="acc")
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
    (run,) = audit([read_log(make_log(tmp_path / "vdlrecords.1.log", shares, scale=scale))])[0].to_dict("records")
    means = 100 * shares.mean(axis=1)
    assert (run["processes"], run["images_per_value"], run["test_images"], run["evaluations"]) == (3, 400, 1200, 40)
    assert run["best"] == pytest.approx(means.max(), abs=1e-4)
    assert run["best_step"] == 10 * (means.argmax() + 1)
    assert run["last"] == pytest.approx(means[-1], abs=1e-4)
    assert run["best_value"] == pytest.approx(100 * shares.max())
    assert run["started"] == "2023-11-14" and run["hours"] == pytest.approx(39 * 20 / 3600, abs=0.01)


def test_files_that_keep_pace_are_one_run_a_copy_is_none_and_another_run_is_another(tmp_path):
    one, other = random_shares(), random_shares(seed=1)
    paths = [
        make_log(tmp_path / "vdlrecords.1.log", one, ranks=[0, 2]),
        make_log(tmp_path / "vdlrecords.2.log", one, ranks=[1]),
        make_log(tmp_path / "copy" / "vdlrecords.1.log", one, ranks=[0, 2]),
        make_log(tmp_path / "vdlrecords.3.log", other, later=5000),
    ]
    runs, accuracy = audit([read_log(path) for path in paths])
    assert list(runs["run"]) == ["1 + 2", "3"] and list(runs["processes"]) == [3, 3]
    assert runs["best"].tolist() == pytest.approx(
        [100 * shares.mean(axis=1).max() for shares in (one, other)], abs=1e-4
    )
    assert len(accuracy) == 80


def test_a_step_that_a_process_lost_is_left_out(tmp_path):
    shares = random_shares()
    shares[7] = 0.9  # would be the best
    path = make_log(tmp_path / "vdlrecords.1.log", shares)
    records = read_log(path).scalars["test/accuracy"]
    lost = records[~((records["step"] == 80) & (records.index % 3 == 0))]
    rows = [("test/accuracy", row.step, row.value, row.time - BEGAN) for row in lost.itertuples()]
    runs, _ = audit([read_log(write_log(tmp_path / "vdlrecords.2.log", rows))])
    assert runs["evaluations"].item() == 39 and runs["best"].item() < 90


def test_equal_best_values_are_counted(tmp_path):
    shares = random_shares(ranks=1)
    shares[[5, 9]] = 0.95
    runs, _ = audit([read_log(make_log(tmp_path / "vdlrecords.1.log", shares))])
    assert (runs["best_step"].item(), runs["best_times"].item()) == (60, 2)


# ---- schedule

STEPS_DOWN = np.where(np.arange(1000) < 500, 1, 0.1)


def rates(shape, warmup=50, planned=1000, end=1000, peak=0.01):
    steps = np.arange(1, end + 1)
    progress = (steps - warmup) / (planned - warmup)
    after = {"cosine": (1 + np.cos(math.pi * progress)) / 2, "linear": 1 - progress, "constant": 1 + 0 * progress}
    return pd.Series(peak * np.where(steps < warmup, steps / warmup, after[shape]), steps)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (rates("cosine"), "warm-up 50 to 0.01, cosine to 0 at 1,000, finished"),
        (rates("cosine", end=600), "warm-up 50 to 0.01, cosine to 0 at 1,000, stopped at 600"),
        (rates("linear", planned=2000, end=900), "warm-up 50 to 0.01, linear to 0 at 2,000, stopped at 900"),
        (rates("linear", warmup=1), "from 0.01, no warm-up, linear to 0 at 1,000, finished"),
        (rates("constant"), "warm-up 50 to 0.01, constant to step 1,000"),
        (rates("constant") * STEPS_DOWN, "warm-up 50 to 0.01, then other; 0.001 at step 1,000"),
    ],
)
def test_a_schedule_is_described(schedule, expected):
    assert describe_schedule(schedule) == expected


@pytest.mark.parametrize("tag", ["train/lr", "train/learning_rate", "LR"])
def test_the_learning_rate_is_found_by_its_name(tmp_path, tag):
    rows = [(tag, step, rate, 2 * step) for step, rate in rates("cosine", end=600).items()]
    rows.append(("test/accuracy", 600, 0.5, 1200))
    runs, _ = audit([read_log(write_log(tmp_path / "vdlrecords.1.log", rows))])
    assert runs["schedule"].item() == "warm-up 50 to 0.01, cosine to 0 at 1,000, stopped at 600"


# ---- claims


def test_a_claim_is_judged_by_the_logs_of_its_own_repository():
    row = {"processes": 1, "images_per_value": 10_000, "test_images": 10_000, "best_value_step": 1}
    runs = pd.DataFrame(
        [
            row | {"repository": ZPC, "best": 92.71, "last": 92.4, "best_value": 92.71},
            row | {"repository": "another/one", "best": 93.92, "last": 93.92, "best_value": 93.92},
        ]
    )
    found = judge(runs)
    assert set(found["repository"]) == {ZPC}  # zbp's claims have no log here, whatever the others reach
    assert dict(zip(found["percent"], found["supported"], strict=True)) == {
        92.71: "yes",
        92.65: "cannot tell",
        92.66: "cannot tell",
    }
    assert judge(runs[:1].assign(best=92.5))["supported"].unique().tolist() == ["no"]


# ---- the real ones


@pytest.fixture(scope="module")
def record(tmp_path_factory):
    """The folder that --record writes for the raw published logs."""
    if not PUBLISHED.is_dir():
        pytest.skip(f"the published logs are not at {PUBLISHED}")
    folder = tmp_path_factory.mktemp("published")
    for name in ("files.csv", "claims.csv", "literature.csv"):
        shutil.copy(ROOT / "logs" / "published" / name, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reproduce.audit.FOLDER", folder)
        main([str(PUBLISHED), "--record"])
    return folder


def test_what_the_published_logs_reach_on_all_test_images(record):
    runs = read_record(record)["runs"]
    zbp = runs[runs["repository"] == ZBP].set_index("run")
    four = zbp.loc["1633182432 + 1633182433"]
    assert (four["processes"], four["images_per_value"], four["test_images"]) == (4, 2500, 10_000)
    assert (four["best"], four["best_step"], four["best_value"]) == (93.01, 7600, 93.92)
    assert (zbp.loc["1629277487", "best"], zbp.loc["1629277487", "processes"]) == (93.40, 1)
    zpc = runs[runs["repository"] == ZPC].set_index("run")
    assert (zpc.loc["1629143311", "best"], zpc.loc["1629143311", "last"]) == (92.71, 92.46)
    assert (zpc.loc["1629861071", "best"], zpc.loc["1629861071", "last"]) == (92.66, 92.55)
    assert zpc.loc["1629143311", "schedule"] == "warm-up 500 to 0.01, cosine to 0 at 20,000, stopped at 16,874"


def test_the_record_is_what_the_audit_of_the_raw_logs_gives(record):
    for name in ("runs.csv", "accuracy.csv"):
        assert (record / name).read_bytes() == (ROOT / "logs" / "published" / name).read_bytes(), name


def test_the_command_prints_the_finding(tmp_path, capsys):
    make_log(tmp_path / "vdlrecords.1.log", random_shares())
    main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert re.search(r"^images_per_value +400\ntest_images +1200$", printed, re.MULTILINE)
    assert re.search("^schedule +rate not logged$", printed, re.MULTILINE) and "claim" not in printed
    with pytest.raises(UserError, match="--record is for the logs whose repositories are known"):
        main([str(tmp_path), "--record"])


def test_what_the_claims_rest_on():
    claims = judge(read_record()["runs"]).set_index(["repository", "percent"])
    assert claims.loc[(ZBP, 93.92), "rests_on"] == "one of 4 processes, 2,500 images, step 6,100"
    assert claims.loc[(ZBP, 93.44), "supported"] == "no" and claims.loc[(ZPC, 92.71), "supported"] == "yes"


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
    main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert re.search(rf"^last_step +{2**62}$", printed, re.MULTILINE)
    assert re.search(r"^started +[-\d]+$", printed, re.MULTILINE)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_rates_that_are_none_are_no_schedule(tmp_path, value, capsys):
    rows = [("train/lr", step, value, step) for step in range(1, 9)] + [("test/accuracy", 8, 0.5, 9)]
    write_log(tmp_path / "vdlrecords.1.log", rows)
    main([str(tmp_path)])
    assert "schedule         cannot tell: the logged rate is not positive" in capsys.readouterr().out


@pytest.mark.parametrize("value", [math.nan, math.inf, -0.1])
def test_accuracies_that_are_no_numbers_are_refused(tmp_path, value):
    log = read_log(write_log(tmp_path / "a", [("test/accuracy", 1, 0.5, 0), ("test/accuracy", 2, value, 1)]))
    with pytest.raises(UserError, match=r"has the value .*neither a share nor a percentage"):
        audit([log])


def test_names_of_scalars_do_not_steer_the_screen(tmp_path):
    log = read_log(write_log(tmp_path / "a", [("\x1b[31mred\nline", 1, 0.5, 0)]))
    with pytest.raises(UserError, match=r"it has \\x1b\[31mred\\nline\)"):
        audit([log])


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "vdlrecords.fifo")
    for path in (tmp_path / "vdlrecords.fifo", tmp_path):
        with pytest.raises(UserError, match="neither a file nor a folder with VisualDL record files"):
            find_logs([path])
