"""Figures: drawn from logs/, each shows the numbers that it should, no name of a run is taken for markup."""

import json
import shutil

import numpy as np
import pytest
from making_runs import EVIDENCE, make_arm
from matplotlib.figure import Figure
from PIL import Image

from reproduce import plot, results
from reproduce.curves import draw_run


def test_the_figures_on_the_pages_are_those_that_logs_give(tmp_path):
    """The committed ones are not compared by pixels, as fonts and versions move them."""
    plot.main(["--images", str(tmp_path)])
    earlier = {"published.png"}  # docs/audit.md says what drew it
    assert {path.name for path in tmp_path.iterdir()} | earlier == {path.name for path in plot.FIGURES.iterdir()}
    for path in tmp_path.iterdir():
        with Image.open(path) as drawn, Image.open(plot.FIGURES / path.name) as committed:
            assert drawn.size == committed.size, f"{path.name}: draw it again with python -m reproduce.plot"
            coloured = (np.ptp(np.asarray(drawn.convert("RGB")).astype(int), axis=2) > 40).mean()
            assert coloured > 0.002  # lines and dots, not frames alone


def test_the_kl_question_shows_the_mean_and_every_pair_of_seeds(tmp_path):
    make_arm(tmp_path, "digits-two_views", [12, 11, 10], alpha=0.0)
    make_arm(tmp_path, "digits-rdrop_1", [10, 12, 8])
    (axes,) = plot.draw_kl_question(results.study_runs(tmp_path)).axes
    points = {tuple(line.get_xdata()) for line in axes.lines if line.get_marker() == "|" and len(line.get_xdata()) == 3}
    assert [pytest.approx(pair) for pair in points] == [(0.4, -0.2, 0.4)]
    (dot,) = [line for line in axes.lines if line.get_marker() == "o"]
    assert dot.get_xdata() == pytest.approx([0.2])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["R-Drop 1"]
    assert axes.get_xlabel() and axes.get_title()


def test_accuracy_says_validation_and_ends_at_100(tmp_path):
    make_arm(tmp_path / "logs", "digits-rdrop_1", [1])
    (axes,) = plot.figures(tmp_path / "logs")["accuracy"].axes
    assert "validation" in axes.get_ylabel() and axes.get_ylim()[1] <= 100
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(98.5)


def test_a_curve_is_the_mean_of_the_seeds_at_the_steps_that_all_have(tmp_path):
    make_arm(tmp_path, "digits-rdrop_1", [5, 6])
    for seed, values in ((1, {10: 2.0, 20: 1.0}), (2, {10: 4.0, 20: 2.0, 30: 9.0})):
        rows = [{"step": step, "train/kl": value} for step, value in values.items()]
        path = tmp_path / f"study/digits-rdrop_1-seed{seed}" / "metrics.jsonl"
        path.write_text("\n".join(map(json.dumps, rows)))
    (axes,) = plot.draw_curves(results.study_runs(tmp_path), "train/kl", "KL").axes
    assert axes.lines[0].get_xydata().tolist() == [[10, 3.0], [20, 1.5]]


def test_what_there_are_no_runs_for_is_not_drawn(tmp_path):
    """One arm alone: nothing to subtract, and one view has no KL."""
    (tmp_path / "study").mkdir()
    assert not plot.figures(tmp_path)
    make_arm(tmp_path, "digits-baseline", [3], num_views=1)
    assert set(plot.figures(tmp_path)) == {"accuracy"}
    make_arm(tmp_path, "digits-two_views", [4], alpha=0.0)  # one seed has no interval
    assert set(plot.figures(tmp_path)) == {"accuracy", "kl", "kl_question"}


@pytest.mark.parametrize("name", ["lr_$1e-3", "$\\frac{$", "lr_$1e-3_{$"])
def test_a_run_of_any_name_can_be_drawn(tmp_path, name):
    shutil.copytree(EVIDENCE / "digits", tmp_path / name)
    with Image.open(draw_run(tmp_path / name, tmp_path / "deep" / "picture.png")) as picture:
        assert picture.size == (1560, 480)


def test_a_single_record_is_drawn_as_a_dot(tmp_path):
    """A line through one point shows nothing, as in a run shorter than --log_every."""
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 3, "train/learning_rate": 0.1}))
    with Image.open(draw_run(tmp_path, tmp_path / "picture.png")) as picture:
        green = (np.asarray(picture.convert("RGB")) == (0, 158, 115)).all(axis=2)
    assert green.sum() > 10


def test_a_run_without_records_can_be_drawn(tmp_path):
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1}))
    with Image.open(draw_run(tmp_path, tmp_path / "picture.png")) as picture:
        assert picture.size == (1560, 480)


def test_the_legend_says_which_images_were_tested(tmp_path, monkeypatch):
    legends = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *_, **__: legends.append(figure.axes[1].get_legend()))
    draw_run(EVIDENCE / "digits", tmp_path / "picture.png", "all images (none held out)")
    texts = [text.get_text() for text in legends[0].get_texts()]
    assert texts == ["validation (held-out training images)", "all images (none held out)"]
