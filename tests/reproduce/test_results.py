"""Runs on record: the table of them, groups over seeds, and R-Drop beside its baseline."""

import dataclasses
import json
import math

import numpy as np
import pytest
from conftest import assert_user_error
from making_runs import EVIDENCE, change_header, make_run
from scipy import stats

from common.errors import UserError
from reproduce import ROOT
from reproduce.evaluate import expected_calibration_error
from reproduce.predictions import BINS, read_predictions, reliability
from reproduce.recipes import Recipe
from reproduce.results import CITED, HARDWARE, find_groups, find_pairs, find_runs, main_pair, summary


def groups_of(logs):
    return find_groups(find_runs(logs))


# ---- the table


def test_a_row_has_what_run_json_says():
    runs = find_runs(EVIDENCE).set_index("name")
    assert list(runs.index) == ["cifar100_vit_ti16", "digits"]
    header, row = json.loads((EVIDENCE / "digits" / "run.json").read_text()), runs.loc["digits"]
    best, last = header["result"]["best"]["test"], header["result"]["last"]["test"]
    assert (row["accuracy"], row["nll"], row["ece"]) == (best["accuracy"], best["nll"], best["ece"])
    assert (row["accuracy_last"], row["nll_last"]) == (last["accuracy"], last["nll"])
    assert (row["recipe"], row["seed"], row["steps"], row["image_size"]) == ("digits", 42, 1000, 8)
    assert (row["num_views"], row["alpha"], row["kl_sum_over"], row["precision"]) == (2, 1.0, 1, "fp32")
    assert (row["processor"], row["gpu"], row["processes"]) == (header["machine"]["processor"], None, 1)
    assert row["commit"] == header["machine"]["git_commit"] and not row["dirty"]
    assert (row["seconds"], row["path"]) == (header["seconds"], EVIDENCE / "digits")


def test_runs_are_found_at_any_depth_and_only_finished_and_evaluated_ones(tmp_path):
    for name in ("a", "study/b", "study/more/c", "study/going", "study/unseen", "study/b.old-1"):
        make_run(tmp_path, name)
    change_header(tmp_path / "study/going", lambda header: header.update(finished=False, result=None))
    change_header(tmp_path / "study/unseen", lambda header: header.update(result={"last": {"step": 1000}}))
    assert list(find_runs(tmp_path)["name"]) == ["a", "study/b", "study/more/c"]
    assert list(find_runs(tmp_path, ("study",))["name"]) == ["study/b", "study/more/c"]
    assert find_runs(tmp_path, ("evidence",)).empty


def test_the_hardware_settings_are_those_of_the_recipes():
    assert set(HARDWARE) == {field.name for field in dataclasses.fields(Recipe) if field.metadata.get("hardware")}


@pytest.mark.parametrize(
    ("content", "fragment"),
    [
        ("{", "Expecting property name"),
        ("[]", "list indices"),
        ('{"finished": true, "result": {"best": {}}}', "recipe"),
    ],
)
def test_a_damaged_header_is_named_in_one_line(command, tmp_path, content, fragment):
    make_run(tmp_path, "good")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "run.json").write_text(content)
    with pytest.raises(UserError, match=f"bad/run.json: not the header of a run .*{fragment}"):
        find_runs(tmp_path)


def test_the_command_prints_runs_and_groups_or_one_line(command, tmp_path):
    for seed in (1, 2):
        make_run(tmp_path, f"one-{seed}", wrong=seed * 5, seed=seed)
    done = command("reproduce.results", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "one-2" in done.stdout and "digits, R-Drop, alpha 1: 98.50 % ± " in done.stdout
    assert_user_error(command("reproduce.results", tmp_path / "none"), "none: no such folder")


# ---- groups


def test_seeds_of_one_recipe_are_a_group_with_students_interval(tmp_path):
    wrong = [5, 10, 12, 4, 9]
    for seed, count in enumerate(wrong):
        make_run(tmp_path, f"run-{seed}", count, seed=seed)
    (group,) = groups_of(tmp_path)
    values = 1 - np.array(wrong) / 500
    found = group.of("accuracy")
    assert (found.n, list(group.runs["seed"])) == (5, [0, 1, 2, 3, 4])
    low, high = stats.t.interval(0.95, 4, values.mean(), stats.sem(values))
    assert found.mean == pytest.approx(values.mean()) and found.half_width == pytest.approx((high - low) / 2)
    assert (found.low, found.high) == pytest.approx((values.min(), values.max()))


def test_one_run_has_no_interval():
    found = summary([0.5])
    assert found[:2] == (1, 0.5) and math.isnan(found.half_width)


def test_a_seed_that_was_run_twice_counts_once(tmp_path):
    make_run(tmp_path, "later", 50, seed=1)
    make_run(tmp_path, "zz-earlier", 5, seed=1)
    make_run(tmp_path, "other", 5, seed=2)
    change_header(tmp_path / "later", lambda header: header["machine"].update(started="2030-01-01T00:00:00+00:00"))
    (group,) = groups_of(tmp_path)
    assert list(group.runs["name"]) == ["zz-earlier", "other"] and group.repeated == ("later",)


def test_only_what_changes_the_meaning_makes_another_group(tmp_path):
    make_run(tmp_path, "a", seed=1)
    make_run(tmp_path, "b", seed=2, micro_batch_size=8, workers=0, pretrained="")
    make_run(tmp_path, "c", seed=3, num_steps=2000, warmup_steps=200, eval_every=200)
    make_run(tmp_path, "d", seed=4, alpha=0.3)
    make_run(tmp_path, "e", seed=5, num_views=1, alpha=0.3)
    make_run(tmp_path, "f", seed=6, num_views=1, alpha=9.0, kl_sum_over=4)  # one view: both mean nothing
    found = {group.arm(): list(group.runs["name"]) for group in groups_of(tmp_path)}
    assert found == {
        "baseline": ["e", "f"],
        "R-Drop, alpha 0.3": ["d"],
        "R-Drop, alpha 1": ["a", "b"],
        "R-Drop, alpha 1, 2,000 steps": ["c"],
    }
    runs = find_runs(tmp_path).set_index("name")
    assert runs.loc["c", "changed"] == {"num_steps": 2000}
    assert (runs.loc["a", "changed"], runs.loc["e", "changed"]) == ({}, {"num_views": 1})


def test_the_same_pretrained_file_elsewhere_is_the_same_group(tmp_path):
    for seed, path in enumerate(("checkpoints/pretrained/x.npz", "../elsewhere/x.npz", "y.npz")):
        make_run(tmp_path, str(seed), seed=seed, pretrained=path)
    assert sorted(len(group.runs) for group in groups_of(tmp_path)) == [1, 2]


def test_a_run_from_before_a_setting_had_its_default(tmp_path):
    old = make_run(tmp_path, "old", seed=1)
    change_header(old, lambda header: header["recipe"].pop("views_split_at", None))
    make_run(tmp_path, "off", seed=2, views_split_at=0)
    assert [len(group.runs) for group in groups_of(tmp_path)] == [2]
    make_run(tmp_path, "on", seed=3, views_split_at=6)
    assert sorted(len(group.runs) for group in groups_of(tmp_path)) == [1, 2]


def test_every_run_on_record_has_every_setting_or_its_default():
    """A new setting whose default is not named in results.py would part older runs from newer ones."""
    meaning = {field.name for field in dataclasses.fields(Recipe)} - {"name", "summary", "seed", *HARDWARE}
    for _, run in find_runs(ROOT / "logs", CITED).iterrows():
        one_view = set() if run["num_views"] > 1 else {"alpha", "kl_sum_over", "loss_form", "views_split_at"}
        assert run["settings"].keys() == meaning - one_view, run["name"]


def test_names_of_arms(tmp_path):
    make_run(tmp_path, "a", alpha=0.0)
    make_run(tmp_path, "b", alpha=0.3, kl_sum_over=32)
    make_run(tmp_path, "c", alpha=0.5, loss_form="mean")
    make_run(tmp_path, "d", alpha=0.7, views_split_at=6)
    found = {group.arm(): group.strength for group in groups_of(tmp_path)}
    assert found == {"two views without KL": 0, "R-Drop, alpha 0.5, views averaged": 0.5,
                     "R-Drop, alpha 0.7, first 6 blocks shared": 0.7,
                     "R-Drop, alpha 0.3, KL summed over 32": pytest.approx(9.6)}  # fmt: skip


# ---- pairs


def test_a_pair_is_compared_seed_by_seed(tmp_path):
    for seed, (rdrop, baseline) in enumerate([(5, 8), (10, 14), (7, 9), (20, None)]):
        make_run(tmp_path, f"rdrop-{seed}", rdrop, seed=seed, nll=0.1)
        if baseline is not None:
            make_run(tmp_path, f"baseline-{seed}", baseline, seed=seed, num_views=1, nll=0.2)
    (pair,) = find_pairs(groups_of(tmp_path))
    assert pair.seeds == [0, 1, 2] and pair.against == "steps"
    found = pair.difference("accuracy")
    gains = np.array([3, 4, 2]) / 500
    assert found.n == 3 and found.mean == pytest.approx(gains.mean())
    assert found.half_width == pytest.approx(stats.t.ppf(0.975, 2) * stats.sem(gains))
    assert pair.difference("nll").mean == pytest.approx(-0.1)


def test_a_baseline_of_twice_the_steps_costs_the_same_and_any_other_is_none(tmp_path):
    make_run(tmp_path, "rdrop")
    make_run(tmp_path, "same", num_views=1)
    make_run(tmp_path, "twice", num_views=1, num_steps=2000, warmup_steps=200, eval_every=200)
    make_run(tmp_path, "twice-rate", num_views=1, num_steps=2000, learning_rate=0.2)
    make_run(tmp_path, "thrice", num_views=1, num_steps=3000)
    make_run(tmp_path, "rate", num_views=1, learning_rate=0.2)
    make_run(tmp_path, "seed", num_views=1, seed=1, momentum=0.5)
    found = [(pair.reference.runs["name"].item(), pair.against) for pair in find_pairs(groups_of(tmp_path))]
    assert found == [("same", "steps"), ("twice", "compute")]


def test_shared_blocks_stand_beside_the_r_drop_of_their_strength(tmp_path):
    make_run(tmp_path, "weak", alpha=0.3)
    make_run(tmp_path, "strong", alpha=0.3, kl_sum_over=8)
    make_run(tmp_path, "shared", alpha=0.3, kl_sum_over=8, views_split_at=2)
    make_run(tmp_path, "no-kl", alpha=0.0)
    make_run(tmp_path, "averaged", alpha=0.0, loss_form="mean")
    found = {(p.arm.first("name"), p.reference.first("name"), p.against) for p in find_pairs(groups_of(tmp_path))}
    assert found == {("weak", "no-kl", "no KL"), ("strong", "no-kl", "no KL"), ("shared", "strong", "whole")}


def test_headline_and_its_baseline_are_a_pair_though_their_names_differ(tmp_path):
    make_run(tmp_path, "a", name="cifar100_vit_b16_rdrop")
    make_run(tmp_path, "b", name="cifar100_vit_b16_baseline", num_views=1)
    assert len(find_pairs(groups_of(tmp_path))) == 1


def test_the_main_pair_has_most_seeds_and_a_kl_term(tmp_path):
    for seed in (1, 2, 3):
        make_run(tmp_path, f"baseline-{seed}", seed=seed, num_views=1)
        make_run(tmp_path, f"zero-{seed}", seed=seed, alpha=0.0)
    for alpha, seeds in ((0.3, (1,)), (1.0, (1, 2))):
        for seed in seeds:
            make_run(tmp_path, f"rdrop-{alpha}-{seed}", seed=seed, alpha=alpha)
    pairs = find_pairs(groups_of(tmp_path))
    assert [pair.against for pair in pairs] == 3 * ["steps"] + 2 * ["no KL"] and main_pair(
        pairs, "digits"
    ).arm.strength == 1.0
    assert main_pair(pairs, "cifar100_vit_ti16") is None


# ---- predictions


@pytest.mark.parametrize("run", ["digits", "cifar100_vit_ti16"])
def test_bins_of_confidence_give_the_calibration_error_of_run_json(run):
    found = read_predictions(EVIDENCE / run)
    bins = reliability(found.confidence, found.hits)
    error = np.nansum(bins.share * np.abs(bins.accuracy - bins.confidence))
    assert error == pytest.approx(expected_calibration_error(found.confidence, found.hits), abs=1e-9)
    header = json.loads((EVIDENCE / run / "run.json").read_text())
    assert error == pytest.approx(header["result"]["best"]["test"]["ece"], abs=1e-9)
    assert bins.count.sum() == len(found.labels) and len(bins.count) == BINS


def test_predictions_of_another_run_are_refused(tmp_path):
    folder = make_run(tmp_path, "run", 10)
    change_header(folder, lambda header: header["result"]["best"]["test"].update(correct=491))
    with pytest.raises(UserError, match=r"490 of 500 images right, run\.json says 491 of 500"):
        read_predictions(folder)
