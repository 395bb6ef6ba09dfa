"""The figures in the READMEs are those of the logs, and the released weights are what they say."""

import csv
import functools
import hashlib
import json
import re

import pytest

from reproduce import ROOT
from reproduce.recipes import RECIPES

READMES = ("README.md", "README_cn.md")


def text(name):
    return (ROOT / name).read_text()


def result(run):
    return json.loads(text(f"logs/evidence/{run}/run.json"))


@pytest.mark.parametrize("readme", READMES)
def test_the_quick_start_promises_what_is_on_record(readme):
    """The result tables have a test of their own: tests/reproduce/test_report.py."""
    quick_start, rest = text(readme).split("results:begin")
    for part in (quick_start, rest.split("results:end")[1]):  # the second is about the released weights
        assert f"{100 * result('digits')['result']['best']['test']['accuracy']:.2f} %" in part


def test_every_run_on_record_is_finished_and_of_a_commit():
    headers = sorted(path for name in ("evidence", "study") for path in (ROOT / "logs" / name).rglob("run.json"))
    assert headers
    for path in headers:
        header = json.loads(path.read_text())
        assert header["finished"] and header["machine"]["git_commit"] and not header["machine"]["git_dirty"], path
        assert (path.parent / "metrics.jsonl").exists() and (path.parent / "predictions.npz").exists(), path


@pytest.mark.parametrize("readme", READMES)
def test_alignment_figures_are_those_of_the_report(readme):
    largest = {}
    with open(ROOT / "logs" / "alignment" / "differences.csv") as file:
        for row in csv.DictReader(file):
            assert row["passed"] == "True", row
            key = row["stage"], row["dtype"]
            largest[key] = max(largest.get(key, 0.0), float(row["mean"]))
    table = {line.split("|")[1].strip(): line for line in text(readme).splitlines() if line.count("|") == 5}
    stages = {"forward": "前向", "metric": "指标", "loss": "损失", "backward": "反向", "training": "训练"}
    for (stage, dtype), value in largest.items():
        line = table[stages[stage] if readme.endswith("_cn.md") else stage]
        assert f"{value:.1e}" in line.split("|")[3 if dtype == "float32" else 4], (stage, dtype)


def test_released_weights_give_the_figure_to_the_last_digit(command):
    weights = ROOT / "checkpoints" / "digits.pdparams"
    assert weights.stat().st_size < 1_000_000
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in text("checkpoints/README.md")
    done = command("reproduce.evaluate")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    expected = result("digits")["result"]["best"]["test"]
    assert {key: found[key] for key in ("correct", "total", "accuracy")} == {
        key: expected[key] for key in ("correct", "total", "accuracy")
    }
    assert found["nll"] == pytest.approx(expected["nll"], rel=1e-4)  # another processor rounds otherwise


@pytest.mark.parametrize("readme", ("README.md", "README_cn.md"))
def test_the_growth_stage_figures_are_those_of_the_logs(readme):
    rows = [line for line in text(readme).splitlines() if line.startswith("| [`growth_stages")]
    assert len(rows) == 4
    for row in rows:
        folder = re.search(r"\(logs/(growth_stages/\w+)\)", row)[1]
        last = json.loads(text(f"logs/{folder}/run.json"))["result"]["last"]
        networks = [last.get(f"test_{which}") for which in ("first", "second")] + [last["test"]]
        cells = [f"{100 * found['accuracy']:.2f}" if found else "-" for found in networks]
        assert [cell.strip() for cell in row.split("|")[3:7]] == [*cells, f"{last['test']['nll']:.3f}"]


@pytest.mark.parametrize(("recipe", "folder"), [("cifar100_vit_ti16", "rate"), ("cifar100_vit_ti16_few", "few_rate")])
def test_the_rate_of_the_recipe_is_the_best_of_those_tried(recipe, folder):
    found = {}
    for line in text("logs/tuning/README.md").splitlines():
        if row := re.match(rf"\| (?:\*\*)?\[[\d.]+\]\(({folder}_([\d.]+))\)", line):
            header = json.loads(text(f"logs/tuning/{row[1]}/run.json"))["recipe"]
            assert header["learning_rate"] == float(row[2]) and header["num_views"] == 1
            assert header["train_per_class"] == RECIPES[recipe].train_per_class
            records = [json.loads(record) for record in text(f"logs/tuning/{row[1]}/metrics.jsonl").splitlines()]
            last = [record for record in records if "validation/accuracy" in record][-1]
            cells = f"{100 * last['validation/accuracy']:.1f}", f"{last['validation/nll']:.3f}"
            assert [cell.strip(" *") for cell in line.split("|")[2:4]] == list(cells)
            found[float(row[2])] = last["validation/accuracy"]
    assert len(found) == 4 and max(found, key=found.get) == RECIPES[recipe].learning_rate


@pytest.mark.parametrize(
    ("readme", "all_hours"), [("README.md", "all five {:.0f}."), ("README_cn.md", "五个共 {:.0f} 小时")]
)
def test_the_hours_to_close_the_gap_are_those_of_the_estimate(readme, all_hours):
    row = next(line for line in text(readme).splitlines() if line.startswith("| A100, bf16 "))
    rdrop = float(row.split("|")[4])  # at 40 % of the peak
    assert f" {rdrop} + {rdrop / 2:.1f} " in text(readme)
    assert all_hours.format(5 * 1.5 * rdrop) in text(readme)


@pytest.mark.parametrize("page", [*READMES, "logs/README.md", "logs/tuning/README.md", "checkpoints/README.md"])
def test_every_link_within_the_project_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", text(page)):
        if "://" not in target:
            path, _, anchor = target.partition("#")
            file = (ROOT / page).parent / path if path else ROOT / page
            assert file.exists() and (not anchor or anchor in anchors(file)), target


@functools.cache
def anchors(page) -> list[str]:
    """What the headings of a page are called in links, as GitHub makes it."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    found = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert len(found) == len(set(found)), page
    return found
