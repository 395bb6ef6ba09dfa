"""Figures: the committed ones are those of logs/, and each shows the numbers that it should."""

import json
import pickle
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import assert_user_error
from making_runs import EVIDENCE, make_run
from PIL import Image

from reproduce import ROOT, plot
from reproduce.figure_style import save, style
from reproduce.plot import FIGURES, draw_run, drawings
from reproduce.published_figures import draw_accuracy, draw_kl_weight, draw_loss
from reproduce.published_record import read_record
from reproduce.results import find_groups, find_pairs, find_runs
from reproduce.run_figures import draw_pair, draw_reliability, draw_strength, draw_superclasses
from reproduce.superclasses import CLASSES, NAMES, SUPERCLASS_OF, confusion


@pytest.fixture(autouse=True)
def close_figures():
    with style():
        yield


# ---- the committed files


def test_the_committed_figures_are_those_of_the_logs_to_the_byte(tmp_path):
    """What a process of its own drew before and what this one draws now: no dates, no chance, nothing stale."""
    found, _ = drawings()
    for drawing in found:
        with style():
            save(drawing.draw(), tmp_path, drawing.name)
        svg, png = f"{drawing.name}.svg", f"{drawing.name}.png"
        assert (tmp_path / svg).read_bytes() == (FIGURES / svg).read_bytes(), f"{svg}: run python -m reproduce.plot"
        with Image.open(tmp_path / png) as new, Image.open(FIGURES / png) as old:
            # pixels, not bytes: how zlib packs them depends on the processor
            assert new.size == old.size and not np.any(np.asarray(new) != np.asarray(old)), png
    kept = {path.name for path in FIGURES.iterdir()}
    assert kept == {f"{drawing.name}.{kind}" for drawing in found for kind in ("png", "svg")}


def test_the_figures_hold_no_date_and_the_svg_no_script():
    for path in FIGURES.glob("*.svg"):
        text = path.read_text()
        assert "<dc:date>" not in text and "<script" not in text and text.lstrip().startswith("<?xml")


# ---- published


def test_every_published_accuracy_is_in_its_panel():
    record = read_record()
    panels = draw_accuracy(record).axes
    for axes, run in zip(panels, record.runs, strict=True):
        values = record.accuracy[record.accuracy["run"] == run["name"]]
        dots = [line for line in axes.lines if line.get_marker() == "."]
        assert sum(len(line.get_xdata()) for line in dots) == (len(values) if run["ranks"] > 1 else 0)
        mean = next(line for line in axes.lines if "10,000 images" in line.get_label())
        assert len(mean.get_ydata()) == run["evaluations"]
        assert mean.get_ydata().max() == pytest.approx(run["best_mean_percent"], abs=1e-4)
        assert {round(float(line.get_ydata()[0]), 2) for line in axes.lines} >= {93.29, 92.64}
        unknown = [line for line in dots if "cannot tell apart" in line.get_label()]
        assert sum(len(line.get_xdata()) for line in unknown) == (~values["separated"]).sum() * (run["ranks"] > 1)


def test_published_losses_begin_at_the_loss_of_an_untrained_network():
    (axes,) = draw_loss(read_record()).axes
    starts = [line.get_ydata()[0] for line in axes.lines[:3]]
    assert starts == pytest.approx([np.log(100)] * 3, rel=0.04)


def test_weight_of_a_summed_kl_against_the_formulas():
    """The official loss of n images, written out, is 2 (CE + w KL) with the w of the figure."""
    rng = np.random.default_rng(0)
    (axes,) = draw_kl_weight().axes
    drawn = {line.get_label().split(",")[0]: dict(zip(*line.get_data(), strict=True)) for line in axes.lines[:3]}
    for n in (8, 32):
        log_p, log_q = (np.log(rng.dirichlet(np.ones(10), n)) for _ in range(2))
        labels = rng.integers(0, 10, n)
        one, other = (-log[np.arange(n), labels] for log in (log_p, log_q))  # (n,)
        both = (np.exp(log_p) * (log_p - log_q)).sum(1) + (np.exp(log_q) * (log_q - log_p)).sum(1)  # (n,)
        mean_ce, mean_kl = (one + other).mean() / 2, both.mean() / 2
        for name, factor, loss in (
            ("official code and Paddle port", 2, one.mean() + other.mean() + 0.3 * both.sum()),
            ("official code and Paddle port", 1, (one.mean() + other.mean()) / 2 + 0.3 * both.sum() / 2),
            ("blog", 1, (one.mean() + other.mean()) / 2 + 0.6 * both.sum() / 2),
            ("paper's formula", 2, (one + other + 0.6 / 2 * both).mean()),
        ):
            assert loss == pytest.approx(factor * (mean_ce + drawn[name][n] * mean_kl))


# ---- our runs


@pytest.fixture
def groups(tmp_path):
    """Baseline and three strengths, three seeds each."""
    for seed in (1, 2, 3):
        make_run(tmp_path, f"baseline-{seed}", 10 + seed, seed=seed, num_views=1)
        for alpha in (0.0, 0.3, 1.0):
            make_run(tmp_path, f"rdrop-{alpha}-{seed}", 5 + seed + int(10 * alpha), seed=seed, alpha=alpha)
    return find_groups(find_runs(tmp_path))


def test_a_pair_shows_mean_and_range_over_seeds(groups, tmp_path):
    path = tmp_path / "rdrop-1.0-2" / "metrics.jsonl"
    path.write_text(path.read_text().replace('"validation/accuracy": 0.985', '"validation/accuracy": 0.885'))
    (pair,) = (p for p in find_pairs(groups) if p.arm.strength == 1.0 and p.against == "steps")
    figure = draw_pair(pair)
    panels = {axes.get_title(): axes for axes in figure.axes}
    accuracy = panels["Validation accuracy"]
    baseline, rdrop = accuracy.lines
    assert (baseline.get_label(), rdrop.get_label()) == ("baseline, 3 seeds", "R-Drop, alpha 1, 3 seeds")
    row = list(rdrop.get_xdata()).index(1000)
    assert baseline.get_ydata()[row] == pytest.approx(98.5)
    assert rdrop.get_ydata()[row] == pytest.approx((98.5 + 88.5 + 98.5) / 3)
    band = accuracy.collections[1].get_paths()[0].vertices
    heights = band[band[:, 0] == 1000, 1]
    assert (heights.min(), heights.max()) == pytest.approx((88.5, 98.5))
    assert len(panels["Mean KL of the two views"].lines) == 1 and len(panels["Learning rate"].lines) == 2
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in figure.axes)


def test_strength_shows_every_seed_and_the_mean(groups):
    arms = [group for group in groups if not group.one_view]
    (axes,) = draw_strength(arms, [group for group in groups if group.one_view]).axes
    dots = {line.get_xdata()[0]: line.get_ydata() for line in axes.lines if len(line.get_xdata()) == 3}
    for arm in arms:
        assert sorted(dots[arm.strength]) == pytest.approx(sorted(100 * arm.runs["accuracy"]))
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "0.3", "1"]
    baseline = next(line for line in axes.lines if line.get_label() == "baseline, 3 seeds")
    assert baseline.get_ydata()[0] == pytest.approx(100 * (1 - 12 / 500))


def test_cost_shows_each_arm_at_its_measured_time(tmp_path):
    logs = tmp_path / "logs"
    for folder in ("published", "bench"):
        (logs / folder).parent.mkdir(exist_ok=True)
        (logs / folder).symlink_to(ROOT / "logs" / folder)
    arms = {"baseline": {"num_views": 1}, "twice": {"num_views": 1, "num_steps": 800, "warmup_steps": 80,
            "eval_every": 200}, "two": {"alpha": 0.0}, "weak": {"alpha": 0.3}, "rdrop": {"alpha": 2.4},
            "shared": {"alpha": 2.4, "views_split_at": 6}, "odd": {"alpha": 2.4, "views_split_at": 5}}  # fmt: skip
    for arm, settings in arms.items():
        for seed in (1, 2, 3):
            make_run(logs, f"study/{arm}{seed}", 4000 + seed, seed=seed, like="cifar100_vit_ti16", **settings)
    drawing = next(drawing for drawing in drawings(logs)[0] if drawing.kind == "cost")
    (axes,) = drawing.draw().axes
    times = json.loads((logs / "bench" / "step_ti16.json").read_text())["competitors"]
    expected = [400 * times["ours_baseline"]["median"], 800 * times["ours_baseline"]["median"],
                400 * times["ours"]["median"], 400 * times["ours"]["median"],
                400 * times["ours_split_6"]["median"]]  # fmt: skip
    dots = [line for line in axes.lines if line.get_marker() == "." and len(line.get_xdata()) == 3]
    assert [60 * line.get_xdata()[0] for line in dots] == pytest.approx(expected, rel=0.02)  # side by side: the nudge
    assert list(dots[0].get_ydata()) == pytest.approx([59.99, 59.98, 59.97])
    assert [text.get_text() for text in axes.texts] == ["", "", "", "", "6 shared"]


def test_what_is_drawn_and_what_is_not(tmp_path, capsys):
    logs = tmp_path / "logs"
    (logs / "published").parent.mkdir()
    (logs / "published").symlink_to(ROOT / "logs" / "published")
    make_run(logs, "study/one", seed=1)
    make_run(logs, "mine", seed=2, alpha=3.0)  # its user's: not in study/
    kinds = ["published_accuracy", "published_loss", "kl_weight"]
    found, missing = drawings(logs)
    assert [drawing.kind for drawing in found] == [*kinds, "reliability"]
    assert missing == ["digits: R-Drop against baseline needs two seeds of each",
                       "digits: the effect of alpha needs runs that differ in it"]  # fmt: skip
    for seed in (1, 2):
        make_run(logs, f"study/baseline{seed}", seed=seed, num_views=1)
        make_run(logs, f"study/more{seed}", seed=seed, alpha=0.3)
        make_run(logs, f"study/cifar{seed}", seed=seed, like="cifar100_vit_ti16")
    found, missing = drawings(logs)
    assert [drawing.name for drawing in found][3:] == [
        "cifar100_vit_ti16_reliability", "cifar100_vit_ti16_superclasses",
        "digits_arms", "digits_alpha", "digits_reliability",
    ]  # fmt: skip
    assert [reason.split(":")[0] for reason in missing] == ["cifar100_vit_ti16"] * 2
    (logs / "study" / "cifar1" / "predictions.npz").unlink()
    assert len(drawings(logs)[0]) == len(found) - 2 and "predictions.npz of each run" in drawings(logs)[1][2]
    shutil.copy(logs / "study" / "cifar2" / "predictions.npz", logs / "study" / "cifar1")
    plot.main(["--logs", str(logs), "--images", str(tmp_path / "images")])
    assert "not drawn:  cifar100_vit_ti16: the effect of alpha" in capsys.readouterr().out
    assert len(list((tmp_path / "images").iterdir())) == 2 * len(found)


def test_without_the_record_of_the_published_logs_one_line_says_so(tmp_path, command):
    make_run(tmp_path, "study/one")
    done = command("reproduce.plot", "--logs", tmp_path, "--images", tmp_path / "images")
    assert_user_error(done, "published: the record", "python -m reproduce.published_record")
    assert not (tmp_path / "images").exists()


def test_reliability_pools_the_seeds_of_an_arm(groups):
    upper, lower = draw_reliability(groups[:1]).axes
    shares = lower.patches[0].get_data().values
    assert shares.sum() == pytest.approx(100)
    label = upper.lines[1].get_label()
    assert label == f"baseline, 3 seeds: error {100 * groups[0].runs['ece'].mean():.2f} points"


def test_draw_run_draws_a_run_and_an_empty_one(tmp_path):
    """What training calls at its end."""
    for logs in (EVIDENCE / "digits", tmp_path):
        with Image.open(draw_run(logs, tmp_path / "deep" / "picture.png")) as picture:
            assert picture.size == (1560, 480)
    assert not plt.get_fignums()


# ---- superclasses


@pytest.mark.parametrize("split", ["train", "test"])
def test_superclasses_are_the_coarse_labels_of_the_real_data(cifar100_folder, split):
    with open(cifar100_folder / "cifar-100-python" / split, "rb") as file:
        data = pickle.load(file, encoding="bytes")
    assert (SUPERCLASS_OF[np.array(data[b"fine_labels"])] == np.array(data[b"coarse_labels"])).all()
    with open(cifar100_folder / "cifar-100-python" / "meta", "rb") as file:
        meta = {(k.decode() if isinstance(k, bytes) else k): v for k, v in pickle.load(file, encoding="bytes").items()}
    names = [n.decode() if isinstance(n, bytes) else n for n in meta["fine_label_names"]]
    assert names == list(CLASSES) and len(meta["coarse_label_names"]) == len(NAMES) == 20


def test_confusion_of_superclasses():
    fish, trout = CLASSES.index("aquarium_fish"), CLASSES.index("trout")
    shark, rose = CLASSES.index("shark"), CLASSES.index("rose")
    labels = np.concatenate([np.arange(100), [fish, fish]])
    found = confusion(labels, np.concatenate([np.arange(100), [trout, rose]]))
    assert found.sum(axis=1) == pytest.approx(np.ones(20))
    row = NAMES.index("fish")
    assert found[row, row] == pytest.approx(6 / 7) and found[row, NAMES.index("flowers")] == pytest.approx(1 / 7)
    assert SUPERCLASS_OF[shark] == row and np.bincount(SUPERCLASS_OF).tolist() == [5] * 20


def test_superclass_figure_has_the_share_of_each_row():
    (group,) = (group for group in find_groups(find_runs(EVIDENCE)) if group.recipe == "cifar100_vit_ti16")
    axes = draw_superclasses(group).axes[0]
    with np.load(EVIDENCE / "cifar100_vit_ti16" / "predictions.npz") as file:
        labels, classes = SUPERCLASS_OF[file["labels"]], SUPERCLASS_OF[file["top5"][:, 0]]
    people = NAMES.index("people")
    expected = f"{100 * (classes[labels == people] == people).mean():.0f}"
    drawn = {text.get_position(): text.get_text() for text in axes.texts}
    assert drawn[people + 0.5, people + 0.5] == expected
    assert f"{100 * (classes == labels).mean():.1f} % of the images" in axes.get_title()
