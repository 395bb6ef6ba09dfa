"""The audit of published logs: on logs of known making, on the four real ones, on files that are none; the board."""

import functools
import hashlib
import http.server
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED, assert_user_error
from visualdl import LogWriter
from visualdl.component.base_component import scalar, text

from common.errors import UserError
from data import download as downloader
from reproduce import ROOT, published
from reproduce.claims import CLAIMS, Claim
from reproduce.log_audit import Settings, images_per_value, loss_period
from reproduce.published import audit, main, read_log, verdicts
from reproduce.rank_curves import rank_curves
from reproduce.visualdl_files import Scalar

PUBLISHED = SHARED / "published_logs" / "zbp"
BEGAN = 1_700_000_000  # seconds of the first record of every log made here


# ---- logs of known making


def write_log(path, records):
    """A record file of (tag, step, value, seconds after BEGAN) as VisualDL writes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for tag, step, value, seconds in records:
            message = scalar(tag, value, step, round(1000 * (BEGAN + seconds))).SerializeToString()
            file.write(len(message).to_bytes(8, "little") + message)
    return path


class Run:
    """A run with a known answer: ranks that each count their own `images` test images, in a file order of its own."""

    def __init__(self, ranks=3, images=400, updates=600, every=10, easier=(0.0, 0.03, 0.08), epoch=0, seed=0,
                 scale=8.0, classes=100, clock_skew=0.0, fixed_order=False, reduced=False, seconds_a_step=2.0,
                 rates=None, percent=False):  # fmt: skip
        rng = np.random.default_rng(seed)
        self.steps = np.arange(every, updates + 1, every)
        learned = 0.5 + 0.3 * self.steps / updates
        easier = np.array(easier[:ranks])
        shares = learned[:, None] + easier + rng.normal(0, 0.004, (len(self.steps), ranks))
        self.shares = np.rint(shares * images) / images  # (T, ranks), column r is rank r
        updated = np.arange(1, updates + 1)
        difficulty = rng.normal(0, 0.2, epoch)[updated % epoch] if epoch else rng.normal(0, 0.2, updates)
        start = scale * math.log(classes)
        noise = difficulty[:, None] + rng.normal(0, 0.1, (updates, ranks))
        self.losses = start * np.exp(-3 * updated / updates)[:, None] * np.exp(noise)  # (updates, ranks)
        self.losses[0] = start
        if reduced:
            self.shares[:] = self.shares[:, :1]
            self.losses[:] = self.losses[:, :1]
        self.records = []
        for step in updated:
            order = np.arange(ranks) if fixed_order else rng.permutation(ranks)
            for place, rank in enumerate(order):
                seconds = seconds_a_step * step + 0.001 * place + clock_skew * rank
                self.records.append((rank, "train/loss", step, self.losses[step - 1, rank], seconds))
                if rates is not None and rank == 0:
                    self.records.append((rank, "train/learning_rate", step, rates[step - 1], seconds))
            if step % every == 0:
                for place, rank in enumerate(order):
                    seconds = seconds_a_step * step + 0.1 + 0.001 * place + clock_skew * rank
                    value = self.shares[step // every - 1, rank] * (100 if percent else 1)
                    self.records.append((rank, "test/accuracy", step, value, seconds))

    def write(self, path, ranks=None, later=0.0):
        """The file of these ranks (None: of all)."""
        return write_log(path, [(tag, step, value, seconds + later) for rank, tag, step, value, seconds in self.records
                                if ranks is None or rank in ranks])  # fmt: skip


@pytest.fixture
def log(tmp_path):
    """Make a run's log and audit it: log(ranks=3, ...) -> (Run, Audit)."""

    def make(settings=None, **options):
        run = Run(**options)
        (found,) = audit([read_log(run.write(tmp_path / "vdlrecords.1.log"))], settings)
        return run, found

    return make


def test_what_logwriter_writes_is_read(tmp_path):
    with LogWriter(logdir=str(tmp_path), file_name="vdlrecords.7.log") as writer:
        writer.add_hparams({"alpha": 0.3}, ["test/accuracy"])
        for step in (1, 2, 3):
            writer.add_scalar("train/loss", 4.5 / step, step)
            writer.add_scalar("train/loss", 4.25 / step, step)
        writer.add_scalar("test/accuracy", 0.75, 3)
    log = read_log(tmp_path / "vdlrecords.7.log")
    assert (
        log.name == "vdlrecords.7"
        and log.clock_seconds == 0.001
        and set(log.scalars) == {"train/loss", "test/accuracy"}
    )
    assert log.sha256 == hashlib.sha256((tmp_path / "vdlrecords.7.log").read_bytes()).hexdigest()
    loss = log.scalars["train/loss"]
    assert loss.writers == 2 and loss.steps.tolist() == [1, 1, 2, 2, 3, 3] and loss.odd_steps == []
    assert loss.values == pytest.approx([4.5, 4.25, 2.25, 2.125, 1.5, 4.25 / 3])
    assert abs(log.unix_seconds[1] - time.time()) < 100


def test_stamps_in_seconds_and_in_milliseconds_are_the_same_time(tmp_path):
    for name, stamps in (("s", [1633182454, 1633182467]), ("ms", [1633182454000, 1633182467000])):
        with open(tmp_path / name, "wb") as file:
            for step, stamp in enumerate(stamps):
                message = scalar("train/loss", 1.0, step, stamp).SerializeToString()
                file.write(len(message).to_bytes(8, "little") + message)
        assert read_log(tmp_path / name).unix_seconds == (1633182454, 1633182467)


# ---- whose value is it


def test_three_ranks_in_one_file_are_separated_by_their_test_images(log):
    run, found = log(easier=(0.08, 0.0, 0.03))
    assert (found.ranks, found.evaluations, found.updates) == (3, 60, 600)
    assert found.images_per_value == 400 and found.test_images == 1200
    curves = found.accuracy
    assert curves.steps.tolist() == run.steps.tolist() and curves.separated.mean() > 0.9
    truth = run.shares[:, [1, 2, 0]]  # the lowest first
    assert (curves.values == truth)[curves.separated].all()
    assert curves.means == pytest.approx(run.shares.mean(axis=1))
    rank = run.shares.max(axis=0).argmax()
    assert rank == 0 and found.best_value_label == "vdlrecords.1 #3"
    assert found.best_value_percent == pytest.approx(100 * run.shares.max())
    assert found.best_value_offset_points == pytest.approx(
        100 * (run.shares[:, 0] - run.shares.mean(axis=1)).mean(), abs=0.2
    )
    means = run.shares.mean(axis=1)
    assert found.best_mean_percent == pytest.approx(100 * means.max())
    assert found.best_mean_step == run.steps[means.argmax()]
    assert found.last_mean_percent == pytest.approx(100 * means[-1])
    assert not found.loss.separated.any() and "cannot be told apart" in found.loss.evidence[0]


@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_ranks_that_differ_by_chance_alone_are_not_separated(log, ranks):
    run, found = log(ranks=ranks, easier=np.zeros(ranks), updates=1500)
    assert not found.accuracy.separated.any() and "cannot be told apart" in found.accuracy.evidence[0]
    assert found.accuracy.means == pytest.approx(run.shares.mean(axis=1))  # the mean needs no separation
    assert "rank not known" in found.best_value_label and found.best_value_offset_points is None


def test_two_ranks_alike_and_one_easier_are_half_separated(log):
    run, found = log(easier=(0.0, 0.0, 0.05))
    separated = found.accuracy.separated
    assert not separated[:, :2].any() and separated[:, 2].all()
    assert (found.accuracy.values[:, 2] == run.shares[:, 2]).all()
    assert "#1 at 0, #2 at 0, #3 at 60 of 60" in found.accuracy.evidence[0]


def test_clocks_that_differ_separate_the_loss_too(log):
    run, found = log(easier=(0.0, 0.0, 0.0), clock_skew=0.2)
    for curves, truth in ((found.accuracy, run.shares), (found.loss, run.losses)):
        assert curves.separated.all() and "clocks" in curves.evidence[0]
        assert curves.values == pytest.approx(truth, rel=1e-6)


def test_a_fixed_place_within_a_step_separates_the_loss_too(log):
    run, found = log(fixed_order=True, easier=(0.03, 0.0, 0.08), seconds_a_step=0.0)
    for curves, truth in ((found.accuracy, run.shares), (found.loss, run.losses)):
        assert curves.separated.all() and "place within a step" in curves.evidence[0]
        assert curves.values == pytest.approx(truth, rel=1e-6)


def test_few_evaluations_separate_nothing(log):
    _, found = log(updates=100)
    assert not found.accuracy.separated.any() and "10 steps are too few" in found.accuracy.evidence[0]


def test_ranks_that_log_the_same_count_the_same_images(log):
    _, found = log(reduced=True)
    assert found.ranks == 3 and found.images_per_value == found.test_images == 400
    assert "same values" in found.accuracy.evidence[0] and "same values" in found.loss.evidence[0]


# ---- which files are one run


def test_the_files_of_one_run_are_one_run_and_another_run_is_not(tmp_path):
    one, other = Run(), Run(seed=1)
    files = [one.write(tmp_path / "vdlrecords.1.log", {0, 2}), one.write(tmp_path / "vdlrecords.2.log", {1}),
             other.write(tmp_path / "vdlrecords.3.log", later=5000)]  # fmt: skip
    first, second = audit([read_log(path) for path in files])
    assert first.name == "vdlrecords.1 + vdlrecords.2" and first.ranks == 3 and first.test_images == 1200
    assert first.accuracy.values[:, 2].tolist() == one.shares[:, 1].tolist()  # known by its file
    assert first.accuracy.separated[:, 2].all() and first.loss.separated[:, 2].all()
    assert first.best_mean_percent == pytest.approx(100 * one.shares.mean(axis=1).max())
    assert second.name == "vdlrecords.3" and second.ranks == 3
    assert second.best_mean_percent == pytest.approx(100 * other.shares.mean(axis=1).max())


def test_ranks_that_wrote_files_of_one_name_in_folders_of_their_own_are_all_there(tmp_path):
    run = Run()
    files = [run.write(tmp_path / str(rank) / "vdlrecords.1.log", {rank}) for rank in range(3)]
    (found,) = audit([read_log(path) for path in files])
    assert found.ranks == 3 and found.accuracy.labels == tuple(map(str, files))
    assert (found.accuracy.values == run.shares).all() and found.accuracy.separated.all()


def test_a_copy_in_another_order_or_cut_earlier_is_counted_once(tmp_path):
    run = Run()
    whole = run.write(tmp_path / "vdlrecords.1.log")
    copy, begin = tmp_path / "copy" / "vdlrecords.1.log", tmp_path / "vdlrecords.2.log"
    shuffled = [run.records[i] for i in np.random.default_rng(0).permutation(len(run.records))]
    write_log(copy, sorted((record[1:] for record in shuffled), key=lambda record: record[1]))
    write_log(begin, [record[1:] for record in run.records[:900]])
    (found,) = audit([read_log(path) for path in (begin, whole, copy)])
    assert found.ranks == 3 and set(found.copies) == {copy, begin}


def test_a_value_lost_in_one_step_is_said_and_left_out_of_the_means(tmp_path):
    run = Run()
    records = [record[1:] for record in run.records]
    lost = records.index(next(record for record in records if record[:2] == ("test/accuracy", 50)))
    (found,) = audit([read_log(write_log(tmp_path / "vdlrecords.1.log", records[:lost] + records[lost + 1 :]))])
    assert found.ranks == 3 and 50 not in found.accuracy.steps and found.evaluations == 59
    assert found.files[0].scalars["test/accuracy"].odd_steps == [50]


# ---- what the numbers tell


@pytest.mark.parametrize("images", [50, 500, 2500, 10_000, 50_000])
def test_the_unit_of_an_accuracy_tells_its_images(images):
    counts = np.random.default_rng(images).integers(1, images, 60)
    assert images_per_value((counts / images).astype(np.float32).astype(float)) == images
    percent = (100 * counts / images).astype(np.float32).astype(float)
    assert images_per_value(percent / 100) == images


def test_no_unit_is_made_up():
    rng = np.random.default_rng(0)
    assert images_per_value(np.array([0.8, 0.81, 0.82])) is None  # 1/100 by chance?
    assert images_per_value(rng.random(60).astype(np.float32).astype(float)) is None
    batches = rng.integers(0, 65, (60, 157)) / 64  # means over batches of 64 of which the last has 16
    batches[:, -1] = rng.integers(0, 17, 60) / 16
    assert images_per_value(batches.mean(axis=1).astype(np.float32).astype(float)) in (None, 157 * 64)


def test_percentages_are_taken_as_such(log):
    run, found = log(percent=True)
    assert found.images_per_value == 400
    assert found.best_value_percent == pytest.approx(100 * run.shares.max())


@pytest.mark.parametrize(("scale", "implied"), [(1.0, 1), (2.0, 2), (16.0, 16), (16.9, 16), (3.0, None), (0.3, None)])
def test_the_scale_of_the_loss(log, scale, implied):
    _, found = log(Settings(classes=10), scale=scale, classes=10)
    assert found.loss_factor == pytest.approx(scale, rel=0.1) and found.implied_accumulation == implied


def test_a_loss_that_repeats_tells_the_epochs(log):
    _, found = log(Settings(train_images=50_000), epoch=97, updates=1000)
    assert found.epoch_updates == 97 and found.epochs == pytest.approx(1000 / 97)
    least, most = found.images_per_update
    assert least <= 512 <= most and most >= 50_000 // 97 and math.ceil(50_000 / least) >= 97


@pytest.mark.parametrize("seed", range(5))
def test_a_loss_in_random_order_has_no_epochs(log, seed):
    _, found = log(updates=1000, seed=seed)
    assert found.epoch_updates is None and found.epochs is None and found.images_per_update is None


def test_a_loss_logged_now_and_then_tells_no_epochs():
    """Every 10th of 97 updates repeats after 10 epochs."""
    epoch = np.exp(np.random.default_rng(0).normal(0, 0.3, 97))
    every, tenth = np.arange(1, 9701), np.arange(10, 9701, 10)
    for steps, period in ((every, 97), (tenth, None)):
        logged = Scalar("train/loss", steps, epoch[steps % 97], steps.astype(float), 1)
        assert loss_period(rank_curves({"log": logged})) == period


def test_a_smoothed_loss_has_no_epochs_either():
    noise = np.random.default_rng(0).normal(0, 0.3, 3000)
    smooth = np.exp(np.convolve(noise, 0.9 ** np.arange(60), "same"))
    steps = np.arange(1, 3001)
    curves = rank_curves({"log": Scalar("train/loss", steps, smooth, steps.astype(float), 1)})
    assert loss_period(curves) is None


def test_the_warm_up_is_read_from_the_rates(log):
    rising = np.minimum(np.arange(1, 601) / 50, 1) * np.linspace(1, 0.9, 600)
    _, found = log(rates=0.1 * rising)
    assert found.warm_up.startswith("yes: the logged rate rises") and found.warm_up.endswith("at step 50")
    _, found = log(rates=np.linspace(0.1, 0, 600))
    assert found.warm_up.startswith("no: the logged rate is highest, 0.1,")


@pytest.mark.parametrize(("power", "answer"), [(1, "no (inferred)"), (2, "yes (inferred)"), (1.5, "cannot tell")])
def test_without_rates_the_warm_up_is_inferred_from_the_losses(tmp_path, power, answer):
    steps = np.arange(1, 601)
    losses = 4.6 * np.exp(-((steps / 120) ** power)) + 0.01  # constant rate: exponential; rising rate: Gaussian
    records = [("train/loss", step, loss, step) for step, loss in zip(steps, losses, strict=True)]
    path = write_log(tmp_path / "vdlrecords.1.log", [*records, ("test/accuracy", 600, 0.5, 601)])
    (found,) = audit([read_log(path)])
    assert found.warm_up.startswith(answer)


def test_time_and_speed(log):
    _, found = log(seconds_a_step=36.0)
    assert found.updates_per_second == pytest.approx(1 / 36, rel=1e-3)
    assert found.wall_hours == pytest.approx(599 * 36 / 3600, rel=1e-3)
    assert found.started == "2023-11-14 22:13"


# ---- the claims


def test_claims_are_judged_on_the_whole_test_set(log):
    run, found = log(images=400)
    best, end = found.best_mean_percent, found.last_mean_percent
    top = round(100 * run.shares.max(), 2)
    assert best < top and end < 100

    def judged(*arguments, **options):
        (verdict,) = verdicts([found], (Claim(*arguments, "what", "source", test_images=1200, **options),))
        return verdict.supported, verdict.why

    assert judged(round(best, 2))[0] == "yes"
    answer, why = judged(top)
    assert answer == "no" and f"1 of 3 ranks counted on its 400 images at step {found.best_value_step}" in why
    assert f"the highest is {best:.2f}" in why and "points against that mean" in why
    assert judged(round(end, 2), moment="end")[0] == "yes"
    assert judged(round(end + 0.02, 2), moment="end")[0] == "no"
    assert verdicts([found], CLAIMS)[0].supported == "cannot tell"  # 1,200 images are not CIFAR-100's 10,000


# ---- the four real logs


@pytest.fixture(scope="session")
def real_audits():
    if not PUBLISHED.is_dir():
        pytest.skip(f"the logs that zbp-xxxp/R-Drop-Paddle published are not at {PUBLISHED}")
    return audit([read_log(path) for path in sorted(PUBLISHED.glob("*.log"))])


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (0, {"name": "vdlrecords.1629277487", "started": "2021-08-18 09:05", "ranks": 1, "updates": 24_900,
             "evaluations": 248, "images_per_value": 10_000, "best_value_percent": 93.40, "best_value_step": 5100,
             "last_mean_percent": 92.81, "wall_hours": 77.57, "epochs": 256.7, "updates_per_second": 0.0892}),
        (1, {"name": "vdlrecords.1633182432 + vdlrecords.1633182433", "started": "2021-10-02 13:47", "ranks": 4,
             "updates": 7616, "evaluations": 76, "images_per_value": 2500, "best_value_percent": 93.92,
             "best_value_step": 6100, "best_value_label": "vdlrecords.1633182433", "best_mean_percent": 93.01,
             "best_mean_step": 7600, "last_mean_percent": 93.01, "wall_hours": 27.24, "epochs": 78.5}),
        (2, {"name": "vdlrecords.1633942646", "started": "2021-10-11 08:57", "ranks": 4, "updates": 9915,
             "evaluations": 99, "images_per_value": 2500, "best_value_percent": 93.84, "best_value_step": 7500,
             "best_value_label": "vdlrecords.1633942646 #4", "best_mean_percent": 92.98, "best_mean_step": 8300,
             "last_mean_percent": 92.86, "last_mean_step": 9900, "wall_hours": 29.47, "epochs": 102.2}),
    ],
)  # fmt: skip
def test_the_table_of_the_published_logs_follows_from_the_files(real_audits, place, expected):
    run = real_audits[place]
    expected |= {"test_images": 10_000, "implied_accumulation": 16, "epoch_updates": 97}
    for name, value in expected.items():
        found = getattr(run, name)
        assert found == (pytest.approx(value, rel=1e-3) if isinstance(value, float) else value), name
    assert run.best_mean_percent == pytest.approx(round(run.best_mean_percent, 2), abs=1e-9)  # whole images of 10,000
    assert run.warm_up.startswith("cannot tell") and run.images_per_update == (511, 520) and run.copies == ()


def test_a_rank_of_the_real_run_that_has_a_file_of_its_own_is_found_among_the_others(real_audits):
    """The method against the truth: the fourth rank's values are mixed into the file of the other three."""
    files = [log.scalars["test/accuracy"] for log in real_audits[1].files]
    joined = [np.concatenate([getattr(scalar, name) for scalar in files])
              for name in ("steps", "values", "unix_seconds")]  # fmt: skip
    mixed = rank_curves(
        {"all": replace(files[0], steps=joined[0], values=joined[1], unix_seconds=joined[2], writers=4)}
    )
    known = mixed.separated[:, 3]
    assert known.sum() == 44 and (mixed.values[known, 3] == files[1].values[known]).all()


def test_the_real_losses_cannot_be_separated_and_say_so(real_audits):
    for run in real_audits[1:]:
        mixed = [column for column, label in enumerate(run.loss.labels) if "#" in label]
        assert mixed and not run.loss.separated[:, mixed].any() and "cannot be told apart" in run.loss.evidence[0]
        assert "keeps one in" in run.accuracy.evidence[0]


def test_the_logs_do_not_support_the_published_claims(real_audits):
    found = {verdict.claim.percent: verdict for verdict in verdicts(real_audits)}
    assert set(found) == {93.92, 93.44, 93.84, 93.48, 93.29}
    assert {verdict.supported for verdict in found.values()} == {"no"}
    for percent, fragments in {
        93.92: ("its 2,500 images at step 6,100 (vdlrecords.1633182433)", "over the ranks is 92.96", "+1.05 points"),
        93.84: ("its 2,500 images at step 7,500 (vdlrecords.1633942646 #4)", "over the ranks is 92.79", "+0.89 points"),
        93.44: ("93.40, at step 5,100 of vdlrecords.1629277487, the best of 248 evaluations",),
        93.29: ("highest last value is 93.01, at step 7,600", "highest on the way is 93.40"),
    }.items():
        for fragment in fragments:
            assert fragment in found[percent].why, found[percent].why


def test_the_command_on_the_real_logs(real_audits, capsys):
    main([str(PUBLISHED)])
    printed = capsys.readouterr().out
    assert "| vdlrecords.1633942646 | 2021-10-11 08:57 | 4 | 9,915 | 29.5 | 99 x 4 | 2500 | 93.84 at 7,500 |" in printed
    assert printed.count("NO: ") == 5


# ---- files that cannot be used


def make_bad_files(folder, run):
    """Every kind of bad input, with what its line has to say."""
    whole = run.write(folder / "good" / "vdlrecords.1.log").read_bytes()
    records = [record[1:] for record in run.records]
    (folder / "empty").mkdir()
    bad = {}

    def add(name, content, *fragments):
        path = folder / name
        path.write_bytes(content) if isinstance(content, bytes) else write_log(path, content)
        bad[path] = fragments

    def framed(message):
        return len(message).to_bytes(8, "little") + message

    start = len(framed(scalar(*(records[0][i] for i in (0, 2, 1)), round(1000 * (BEGAN + records[0][3])))
                       .SerializeToString()))  # fmt: skip
    add("picture.log", b"\x89PNG\r\n\x1a\n" + bytes(1000), "not a VisualDL record file")
    add("text.log", b"step loss\n1 4.6\n" * 100, "not a VisualDL record file")
    add("short.log", b"abc", "not a VisualDL record file")
    add("framed.log", framed(b"not a protobuf message"), "not a VisualDL record file")
    add("nothing.log", b"", "is empty")
    add("truncated.log", whole[:-5], f"record {len(records):,} at byte", "is cut short", "head -c")
    add("in_length.log", whole + b"\x10\x00", f"record {len(records) + 1:,} at byte", "is cut short")
    add("zeros.log", whole + bytes(64), "is damaged")
    add(
        "overwritten.log",
        whole[: start + 9] + b"\xff" * 8 + whole[start + 17 :],
        f"record 2 at byte {start}",
        "damaged",
    )
    add("two_kinds.log", whole + framed(text("train/loss", "x", 1, 1).SerializeToString()), "is damaged")
    losses = [record for record in records if record[0] == "train/loss"]
    add("no_accuracy.log", losses, "no scalar test/accuracy", "it has train/loss", "--accuracy_tag")
    add("no_loss.log", [r for r in records if r[0] == "test/accuracy"], "no scalar train/loss", "--loss_tag")
    again = [(tag, step, value, seconds + 5000) for tag, step, value, seconds in records]
    add("mixed.log", records + again, "more than one run", "from step 600 to 1", "pause")
    soon = [(tag, step, value, seconds + 1203) for tag, step, value, seconds in records]
    add("again_at_once.log", records + soon, "more than one run", "from step 600 to 1 after a pause of 5 s")
    resumed = [record for record in again if record[1] > 400]
    add("resumed.log", records + resumed, "more than one run", "from step 600 to 401")
    add("not_a_number.log", [*records, ("test/accuracy", 610, math.nan, 1300)], "has the value nan", "--accuracy_tag")
    add("no_share.log", [*records, ("test/accuracy", 610, 873.0, 1300)], "has the value 873")
    bad[folder / "empty"] = ("no VisualDL record files",)
    bad[folder / "missing.log"] = ("no such file or folder",)
    bad[Path("/proc/self/mem")] = ("cannot be read",)  # even for root
    return folder / "good", bad


def test_each_bad_file_has_its_line_and_the_others_are_audited(tmp_path, capsys):
    good, bad = make_bad_files(tmp_path, Run())
    with pytest.raises(UserError, match=f"{len(bad)} of the files or folders could not be used"):
        main([*map(str, bad), str(good)])
    printed = capsys.readouterr()
    assert "| vdlrecords.1 |" in printed.out
    lines = printed.err.splitlines()
    assert len(lines) == len(bad)
    for path, fragments in bad.items():
        (line,) = (line for line in lines if f" {path}: " in line)
        assert line.startswith("error: ")
        for fragment in fragments:
            assert fragment in line, line


def test_what_a_truncated_file_is_told_to_do_works(tmp_path, capsys):
    whole = Run().write(tmp_path / "vdlrecords.1.log")
    cut = tmp_path / "it's cut.log"
    cut.write_bytes(whole.read_bytes()[:-5])
    with pytest.raises(UserError) as error:
        read_log(cut)
    subprocess.run(["bash", "-c", str(error.value).split("before: ")[1]], cwd=tmp_path, check=True)
    read_log(tmp_path / "vdlrecords.begin.log")


def test_writers_that_are_out_of_step_are_not_two_runs(tmp_path):
    records = []
    for step in range(1, 41):  # the second one logs its step after the first one's next
        records += [("train/loss", step + 1, 4.0, step + 1.0), ("train/loss", step, 4.1, step + 0.9)]
    accuracy = [("test/accuracy", 40, 0.5, 50), ("test/accuracy", 40, 0.6, 50)]
    (found,) = audit([read_log(write_log(tmp_path / "vdlrecords.1.log", records + accuracy))])
    assert found.ranks == 2


def test_a_writer_that_is_a_moment_late_is_not_a_second_run(tmp_path):
    records = [record[1:] for record in Run(clock_skew=0).records]
    late = [("train/loss", 599, 4.0, 1202.5), ("train/loss", 600, 4.0, 1202.6)]  # after the others' last record
    (found,) = audit([read_log(write_log(tmp_path / "vdlrecords.1.log", records + late))])
    assert found.ranks == 3


def test_the_exit_code_is_2_and_there_is_no_traceback(command, tmp_path):
    good = Run().write(tmp_path / "vdlrecords.1.log")
    cut = tmp_path / "vdlrecords.2.log"
    cut.write_bytes(good.read_bytes()[:-1])
    done = command("reproduce.published", tmp_path, "--json", "-")
    assert_user_error(done, "1 of the files or folders could not be used")
    answer = json.loads(done.stdout)  # nothing else on stdout
    assert [run["name"] for run in answer["runs"]] == ["vdlrecords.1"] and str(cut) in answer["unusable"][0]


def test_nothing_is_written_when_no_file_can_be_used(tmp_path, capsys):
    with pytest.raises(UserError):
        main([str(tmp_path), "--json", str(tmp_path / "out.json")])
    assert capsys.readouterr().out == "" and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["--classes=1", "--train_images=0", "--classes=many", "--acuracy_tag=x"])
def test_options_that_make_no_sense_are_refused(option):
    with pytest.raises(UserError, match=option.split("=")[0]):
        main([option, "x.log"])


def test_other_tags_and_a_json_file(tmp_path, capsys):
    records = [(tag.replace("test/accuracy", "eval/top1").replace("train/", "step/"), *rest)
               for _, tag, *rest in Run().records]  # fmt: skip
    path = write_log(tmp_path / "vdlrecords.1.log", records)
    main([str(path), "--accuracy_tag", "eval/top1", "--loss_tag", "step/loss", "--json", str(tmp_path / "out.json")])
    assert "| vdlrecords.1 |" in capsys.readouterr().out
    answer = json.loads((tmp_path / "out.json").read_text())
    (run,) = answer["runs"]
    assert run["accuracy"]["tag"] == "eval/top1" and len(run["accuracy"]["percent"]) == 60
    assert run["files"][0]["scalars"]["step/loss"] == {"values": 1800, "writers": 3, "odd_steps": []}
    assert [verdict["supported"] for verdict in answer["verdicts"]] == ["cannot tell"] * len(CLAIMS)
    assert answer["unusable"] == []


# ---- the download


@pytest.fixture
def published_server(tmp_path, monkeypatch):
    """A server on 127.0.0.1 in the place of the public one, with two small logs; gives what was asked of it."""
    files, sources = tmp_path / "server", []
    for number, run in ((11, Run()), (12, Run(seed=1))):
        path = run.write(files / f"commit{number}" / "log" / f"vdlrecords.{number}.log", later=10_000 * number)
        sources.append((path.name, f"commit{number}", hashlib.sha256(path.read_bytes()).hexdigest()))
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=files))
    monkeypatch.setattr(published, "_HOST", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setattr(published, "_FOLDER", tmp_path / "downloads")
    monkeypatch.setattr(published, "_SOURCES", tuple(sources))
    monkeypatch.setattr(downloader, "RETRY_PAUSES", ())
    monkeypatch.setenv("no_proxy", "*")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield asked
    server.shutdown()
    thread.join()
    server.server_close()


def test_without_a_log_the_published_ones_are_fetched_once(published_server, tmp_path, capsys):
    main([])
    assert published_server == ["/commit11/log/vdlrecords.11.log", "/commit12/log/vdlrecords.12.log"]
    assert [path.is_file() for path in published.published_files()] == [True, True]
    printed = capsys.readouterr().out
    assert "| vdlrecords.11 |" in printed and "| vdlrecords.12 |" in printed
    main([])
    assert len(published_server) == 2  # from the disk
    assert capsys.readouterr().out == printed


def test_download_adds_the_published_logs_to_the_given_ones(published_server, tmp_path, capsys):
    given = str(Run(seed=2).write(tmp_path / "vdlrecords.5.log"))
    main([given])
    assert published_server == []
    main([given, "--download"])
    assert len(published_server) == 2 and "| vdlrecords.5 |" in capsys.readouterr().out


def test_a_wrong_file_from_the_server_is_refused_and_the_others_are_audited(published_server, tmp_path, capsys):
    wrong = tmp_path / "server" / "commit11" / "log" / "vdlrecords.11.log"
    wrong.write_bytes(wrong.read_bytes()[::-1])
    with pytest.raises(UserError, match="1 of the files"):
        main([])
    printed = capsys.readouterr()
    assert "gave a wrong file: its sha256 is" in printed.err and "| vdlrecords.12 |" in printed.out
    assert not published.published_files()[0].exists()


def test_without_a_network_every_file_is_named_and_what_is_there_is_audited(published_server, monkeypatch, capsys):
    published.download()
    missing, there = published.published_files()
    missing.unlink()
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setattr(published, "_HOST", f"http://127.0.0.1:{closed.getsockname()[1]}/")
        with pytest.raises(UserError, match="1 of the files"):
            main([])
        printed = capsys.readouterr()
        assert f"by hand to {missing}" in printed.err and "cannot reach 127.0.0.1" in printed.err
        assert "| vdlrecords.12 |" in printed.out
        there.unlink()
        with pytest.raises(UserError, match="2 of the files"):
            main([])
        assert f"{there}: not tried after that; its address is http" in capsys.readouterr().err


def test_the_addresses_are_whole_and_the_real_files_have_these_sums():
    assert len(published.published_files()) == 4 and published._HOST.startswith("https://")
    for name, commit, sha256 in published._SOURCES:
        assert len(commit) == 40 and len(sha256) == 64
        if PUBLISHED.is_dir():
            assert hashlib.sha256((PUBLISHED / name).read_bytes()).hexdigest() == sha256


# ---- the board


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def board(*arguments, **environment):
    """run_board.sh in a process group of its own on a free port; gives a function that asks it, and the port."""
    port = free_port()
    process = subprocess.Popen(
        ["bash", ROOT / "run_board.sh", *map(str, arguments), "--port", str(port)],
        env={**os.environ, "PYTHON": sys.executable, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def ask(path):
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"http://127.0.0.1:{port}{path}", timeout=60
        ) as answer:
            return answer.read()

    try:
        while True:
            assert process.poll() is None, process.stderr.read()
            try:
                ask("/alive")
                break
            except OSError:
                time.sleep(0.1)
        yield ask, port
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        shutil.rmtree(ROOT / "data" / "downloads" / f"board-{port}", ignore_errors=True)


def test_the_board_shows_our_logs_and_every_file_of_a_given_folder(tmp_path):
    for number in (1, 2):
        Run(updates=50, seed=number).write(tmp_path / "flat" / f"vdlrecords.{number}.log")
    Run(updates=50).write(tmp_path / "apart" / "one" / "vdlrecords.3.log")
    with board(tmp_path / "flat", tmp_path / "apart") as (ask, port):
        runs = json.loads(ask("/app/api/runs"))["data"]
        assert any(run.startswith("logs/evidence") for run in runs)
        assert {f"data/downloads/board-{port}/flat/vdlrecords.{number}" for number in (1, 2)} < set(runs)
        assert str(tmp_path / "apart" / "one") in runs
        tags = json.loads(ask("/app/api/scalar/tags"))["data"]
        assert {"train/loss", "test/accuracy"} <= set(tags["tags"][tags["runs"].index(str(tmp_path / "apart" / "one"))])
        assert b"VisualDL" in ask("/app/index")  # from a client that names no language
        listening = subprocess.run(["ss", "-ltn"], capture_output=True, text=True).stdout if shutil.which("ss") else ""
        assert not listening or (f"127.0.0.1:{port} " in listening and f"0.0.0.0:{port} " not in listening)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", port))  # free again


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["missing"], "missing: no such folder"),
        (["."], ".: no VisualDL record files"),
        (["--port", "80x"], "--port 80x: not a number"),
    ],
)
def test_the_board_refuses_in_one_line(tmp_path, arguments, fragment):
    done = subprocess.run(
        ["bash", ROOT / "run_board.sh", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and fragment in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_board_does_not_take_a_port_in_use():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            ["bash", ROOT / "run_board.sh", "--port", port],
            env={**os.environ, "PYTHON": sys.executable},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 2 and f"port {port} is in use" in done.stderr


def test_the_board_calls_nobody():
    """VisualDL's telemetry posts over https while it starts; here a proxy would be asked to let it through."""
    with socket.socket() as proxy:
        proxy.bind(("127.0.0.1", 0))
        proxy.listen()
        proxy.setblocking(False)
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        with (
            board(https_proxy=address, HTTPS_PROXY=address, no_proxy="127.0.0.1", NO_PROXY="127.0.0.1"),
            pytest.raises(BlockingIOError),
        ):
            proxy.accept()
