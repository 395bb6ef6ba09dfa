"""Runs on record as tables: finished runs, arms over their seeds, differences seed by seed, predictions."""

import dataclasses
import json
import math
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from making_runs import EVIDENCE, change_header, make_arm, make_run
from scipy import stats

from common.errors import UserError
from reproduce import ROOT, results
from reproduce.recipes import Recipe
from reproduce.results import find_runs, read_predictions, study_runs
from reproduce.run_log import read_metrics

ONE_VIEW = {"num_views": 1}


# ---- runs


def test_a_row_has_what_run_json_says():
    runs = find_runs(EVIDENCE).set_index("name")
    assert list(runs.index) == ["cifar100_vit_ti16", "digits"]
    header, row = json.loads((EVIDENCE / "digits" / "run.json").read_text()), runs.loc["digits"]
    best, last = header["result"]["best"]["test"], header["result"]["last"]["test"]
    assert (row["accuracy"], row["nll"], row["ece"]) == (best["accuracy"], best["nll"], best["ece"])
    assert (row["accuracy_last"], row["nll_last"], row["ece_last"]) == (last["accuracy"], last["nll"], last["ece"])
    assert (row["recipe"], row["seed"], row["test_images"], row["correct"]) == ("digits", 42, 500, 488)
    assert (row["seconds"], row["path"]) == (header["seconds"], EVIDENCE / "digits")


def test_runs_are_found_at_any_depth_and_only_finished_and_evaluated_ones(tmp_path):
    for name in ("a", "study/b", "study/more/c", "study/going", "study/unseen", "study/b.old-1"):
        make_run(tmp_path, name)
    change_header(tmp_path / "study/going", lambda header: header.update(finished=False, result=None))
    change_header(tmp_path / "study/unseen", lambda header: header.update(result={"last": {"step": 1000}}))
    assert list(find_runs(tmp_path)["name"]) == ["a", "study/b", "study/more/c"]
    assert list(find_runs(tmp_path / "study")["name"]) == ["b", "more/c"]
    assert find_runs(tmp_path / "evidence").empty


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "[" * 100_000, '{"finished": true}', '{"recipe": 3, "finished": true}']
)
def test_a_damaged_header_is_named_in_one_line(tmp_path, content):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text(content)
    with pytest.raises(UserError, match=r"bad/run\.json: is damaged, or not the record of a run; restore") as error:
        find_runs(tmp_path)
    assert "\n" not in str(error.value)


def test_what_is_no_file_is_not_waited_for(tmp_path):
    folder = make_run(tmp_path, "run")
    for name in ("run.json", "metrics.jsonl"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
    assert read_metrics(folder) == []
    with pytest.raises(UserError, match="not a regular file but a pipe"):
        find_runs(tmp_path)


def test_the_command_prints_runs_or_one_line(tmp_path, capsys):
    make_run(tmp_path, "one", 5)
    results.main([str(tmp_path)])
    printed = capsys.readouterr().out
    assert "one digits" in printed and "0.9900" in printed
    (tmp_path / "empty").mkdir()
    for folder in ("none", "empty"):
        with pytest.raises(UserError, match=f"{folder}: no finished run in it; train one"):
            results.main([str(tmp_path / folder)])


def test_training_and_its_picture_load_no_reader_of_logs(tmp_path):
    code = f"""
import sys, reproduce.train
from pathlib import Path
from reproduce.curves import draw_run
draw_run(Path("logs/evidence/digits"), Path({str(tmp_path / "picture.png")!r}))
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    readers = {f"reproduce.{name}" for name in ("results", "report", "plot", "audit")}
    assert not {"pandas", "scipy", *readers} & set(done.stdout.split())
    assert (tmp_path / "picture.png").stat().st_size > 10_000


# ---- arms and differences


def test_an_arm_has_the_mean_of_its_seeds_and_students_interval(tmp_path):
    make_arm(tmp_path, "digits-rdrop_1", [5, 10, 15])
    runs = study_runs(tmp_path)
    assert list(runs["seed"]) == [1, 2, 3]
    (arm,) = results.arms(runs).to_dict("records")
    assert (arm["study"], arm["arm"], arm["n"]) == ("digits", "rdrop_1", 3)
    assert arm["accuracy"] == pytest.approx(0.98)
    assert arm["accuracy_half"] == pytest.approx(4.302653 * 0.01 / 3**0.5)  # t of 2 degrees; SD of 0.97, 0.98, 0.99
    low, high = stats.t.interval(0.95, 2, 0.98, stats.sem([0.97, 0.98, 0.99]))
    assert arm["accuracy_half"] == pytest.approx((high - low) / 2)
    assert all(math.isnan(results.half_width(pd.Series(values))) for values in ([0.5], [0.5, 0.6]))


def test_differences_are_taken_seed_by_seed(tmp_path):
    make_arm(tmp_path, "digits-two_views", [8, 14, 9], nll=0.2)
    make_arm(tmp_path, "digits-rdrop_1", [5, 10, 7, 99], nll=0.1)  # its seed 4 has no partner
    make_arm(tmp_path, "digits-baseline", [9], first_seed=7, **ONE_VIEW)  # no common seed
    (found,) = results.differences(study_runs(tmp_path), "two_views").to_dict("records")
    assert (found["arm"], found["n"]) == ("rdrop_1", 3)
    gains = np.array([3, 4, 2]) / 500
    assert found["accuracy"] == pytest.approx(gains.mean())
    assert found["accuracy_half"] == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(gains))
    assert found["nll"] == pytest.approx(-0.1)


def test_arms_stand_in_the_order_of_their_study_and_unknown_runs_are_left_out(tmp_path):
    for arm in ("digits-rdrop_3", "digits-baseline", "digits-mine", "mine-baseline"):
        make_arm(tmp_path, arm, [3], **(ONE_VIEW if "baseline" in arm else {}))
    make_run(tmp_path, "study/own")
    assert list(study_runs(tmp_path)["arm"]) == ["baseline", "rdrop_3"]


def test_a_run_whose_record_does_not_fit_its_name_is_refused(tmp_path):
    make_run(tmp_path, "study/digits-rdrop_1-seed3", seed=4)
    with pytest.raises(
        UserError, match=r"digits-rdrop_1-seed3: its name says recipe digits and seed 3, .* 'digits' and 4"
    ):
        study_runs(tmp_path)


@pytest.mark.parametrize(
    ("settings", "fragment"),
    [
        ({"alpha": 0.5}, r"alpha \(0\.5, 1\.0\)"),
        ({"learning_rate": 0.2}, "learning_rate"),
        ({"pretrained": "there/y.npz"}, r"pretrained \(x\.npz, y\.npz\)"),
        ({"micro_batch_size": 8, "workers": 0, "device": "cpu"}, None),  # where it is computed means nothing
        ({"pretrained": "there/x.npz"}, None),  # the same file elsewhere
    ],
)
def test_runs_of_an_arm_differ_by_the_seed_alone(tmp_path, settings, fragment):
    make_run(tmp_path, "study/digits-rdrop_1-seed1", seed=1, pretrained="here/x.npz")
    make_run(tmp_path, "study/digits-rdrop_1-seed2", seed=2, **{"pretrained": "here/x.npz"} | settings)
    if fragment is None:
        assert len(study_runs(tmp_path)) == 2
    else:
        with pytest.raises(UserError, match=rf"digits-rdrop_1-seed\*: differ in {fragment}"):
            study_runs(tmp_path)


def test_settings_in_which_runs_of_an_arm_may_differ_are_those_that_recipes_call_hardware():
    hardware = {field.name for field in dataclasses.fields(Recipe) if field.metadata.get("hardware")}
    assert {"name", "summary", "seed", "fused", "resident"} | hardware == results._FREE


def test_the_studies_on_record_are_whole():
    runs = study_runs(ROOT / "logs")
    counts = runs.groupby(["study", "arm"]).size()
    assert set(counts["digits"]) == {10} and len(counts["digits"]) == 6
    assert (counts["cifar100"] == 5).all()


# ---- predictions


def test_classes_of_a_run_with_a_known_answer(tmp_path, capsys):
    folder = make_run(tmp_path, "run", 0)
    labels = read_predictions(folder)["label"].to_numpy()
    wrong = np.concatenate([np.flatnonzero(labels == 3)[:2], np.flatnonzero(labels == 4)[:1]])
    folder = make_run(tmp_path, "again", wrong)  # two threes are called 4, one four is called 5
    names = [f"digit {number}" for number in range(9)] + ["nine\x1b[31m"]
    change_header(folder, lambda header: header.update(class_names=names))
    results.main([str(folder)])
    printed = capsys.readouterr().out
    counts = np.bincount(labels)
    found, _ = results.by_class(read_predictions(folder), {})
    assert found.loc[3].tolist() == [counts[3], counts[3] - 2, 100 * (1 - 2 / counts[3]), 100.0, "4 (2)"]
    assert found.loc[4, "precision, %"] == pytest.approx(100 * (counts[4] - 1) / (counts[4] + 1))
    assert found.loc[7, "most taken for"] == "-"
    assert "digit 4 (2)" in printed and "\x1b" not in printed and "nine\\x1b[31m" in printed
    assert printed.index("digit 3") < printed.index("digit 0")  # the worst class first
    matrix = printed.split("predicted class (columns):")[1]
    (row,) = [line for line in matrix.splitlines() if line.startswith("digit 3")]
    assert row.split()[2:] == ["0", "0", "0", str(counts[3] - 2), "2", "0", "0", "0", "0", "0"]


def test_a_run_that_goes_on_has_no_classes_yet(tmp_path):
    change_header(make_run(tmp_path, "run"), lambda header: header.update(finished=False))
    with pytest.raises(UserError, match="run: this run has not finished"):
        results.main([str(tmp_path / "run")])


def test_a_class_that_is_never_predicted_has_no_precision():
    predictions = pd.DataFrame({"label": [0, 1, 1], "predicted": [0, 0, 0]})
    found, _ = results.by_class(predictions, {})
    assert found["recall, %"].tolist() == [100, 0] and math.isnan(found.loc[1, "precision, %"])


def test_predictions_of_another_run_are_refused(tmp_path):
    folder = make_run(tmp_path, "run", 10)
    change_header(folder, lambda header: header["result"]["best"]["test"].update(correct=491, accuracy=0.982))
    with pytest.raises(UserError, match=r"490 of 500 images right, run\.json says 491 of 500"):
        read_predictions(folder)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text("no zip"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:500]),
        lambda path: path.write_bytes(path.read_bytes()[:100] + b"0123456789" + path.read_bytes()[110:]),
        lambda path: np.save(path.open("wb"), np.ones(3)),
        lambda path: np.savez(path, labels=np.ones(500)),
        lambda path: np.savez(path, **{**np.load(path), "labels": np.array([{}] * 500)}),  # would run a pickle
    ],
)
def test_predictions_that_are_none_are_refused_in_one_line(tmp_path, damage):
    folder = make_run(tmp_path, "run")
    damage(folder / "predictions.npz")
    with pytest.raises(UserError, match=r"predictions\.npz: missing or damaged; copy it from .*") as error:
        read_predictions(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b'{"loss": 1}\n{"step": 2}\n',
        b'{"step": 1}\n[]\n{"step": 2}\n',
        b'{"step": "1"}\n',
        b"[" * 99_999 + b"\n1",
        b'{"step": 1}\n{"st\n{"step": 2}\n',
        b'{"step": 1, "train/loss": "1"}\n',
    ],
)
def test_damaged_records_are_named_in_one_line(tmp_path, content):
    (tmp_path / "metrics.jsonl").write_bytes(content)
    with pytest.raises(UserError, match=r"metrics\.jsonl, line \d: not a record") as error:
        read_metrics(tmp_path)
    assert "\n" not in str(error.value)


def test_a_last_record_cut_short_by_a_kill_is_left_out(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "train/lo')
    assert read_metrics(tmp_path) == [{"step": 1}]


@pytest.mark.parametrize(
    "change",
    [
        lambda header: header["recipe"].pop("seed"),
        lambda header: header["recipe"].update(seed="one"),
        lambda header: header["recipe"].update(seed=[]),
        lambda header: header.update(seconds="long"),
        lambda header: header["result"]["best"]["test"].update(nll=None),
        lambda header: header["result"]["best"]["test"].update(total=0, correct=0),
        lambda header: header["result"]["best"]["test"].update(correct=float("inf")),
        lambda header: header["result"].update(last=None),
    ],
)
def test_a_header_with_odd_content_is_named_in_one_line(tmp_path, change):
    change_header(make_run(tmp_path, "study/digits-rdrop_1-seed1", seed=1), change)
    with pytest.raises(UserError, match=r"seed1/run\.json: not the header of a run") as error:
        study_runs(tmp_path)
    assert "\n" not in str(error.value)
