"""The figures in the READMEs are those of the logs, and the released weights are what they say."""

import csv
import hashlib
import json

import pytest

from reproduce import ROOT

READMES = ("README.md", "README_cn.md", "logs/README.md")


def text(name):
    return (ROOT / name).read_text()


def result(run):
    return json.loads(text(f"logs/evidence/{run}/run.json"))


@pytest.mark.parametrize("run", ["digits", "cifar100_vit_ti16"])
@pytest.mark.parametrize("readme", READMES)
def test_accuracies_are_those_of_the_evidence(run, readme):
    header = result(run)
    assert header["finished"] and not header["machine"]["git_dirty"]
    assert f"{100 * header['result']['best']['test']['accuracy']:.2f} %" in text(readme)


@pytest.mark.parametrize("readme", READMES[:2])
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
