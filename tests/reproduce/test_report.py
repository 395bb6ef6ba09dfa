"""The report: pages are what logs/ say, a stale page is named, two runs are compared correctly."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from making_runs import change_header, make_arm, make_run
from scipy import stats

from common.errors import UserError
from reproduce import ROOT
from reproduce import report as module
from reproduce.report import compare, main
from reproduce.study import STUDIES, runs_of


def page(*tables: str) -> str:
    return "# A page\n\n" + "\n".join(f"<!-- table {name} -->\n<!-- end of table -->\n" for name in tables)


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """The root of a project without pages and runs, which `main` takes for its own."""
    root = tmp_path / "project"
    (root / "docs").mkdir(parents=True)
    shutil.copy(ROOT / "docs" / "words_cn.csv", root / "docs")
    shutil.copytree(ROOT / "logs" / "published", root / "logs" / "published")
    monkeypatch.setattr(module, "ROOT", root)
    return root


def rows(path: Path) -> list[list[str]]:
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_the_committed_pages_are_what_the_logs_say():
    main(["--check"])


def test_tables_from_runs_with_a_known_answer(project):
    make_arm(project / "logs", "digits-baseline", [20, 21, 22], num_views=1, nll=0.3)
    make_arm(project / "logs", "digits-two_views", [12, 11, 10], alpha=0.0, nll=0.2)
    make_arm(project / "logs", "digits-rdrop_0.3", [10, 12, 8], alpha=0.3, nll=0.2)
    (project / "README.md").write_text(page("kl"))
    main([])
    found = rows(project / "README.md")
    half = 100 * stats.t.ppf(0.975, 2) / 3**0.5 / 500  # of a mean of three values one image apart
    assert found[2][1] == "one view"
    assert found[2][2:-1] == ["3", f"95.80 ± {half:.2f}", f"**-2.00 ± {2 * half:.2f}**", "**+0.100 ± 0.000**"]
    assert found[3][1:] == ["two views without KL", "3", f"97.80 ± {half:.2f}", "-", "-", "-"]
    gains = np.array([2, -1, 2]) / 5  # points
    spread = stats.t.ppf(0.975, 2) * stats.sem(gains)
    assert found[4][4] == f"+0.20 ± {spread:.2f}"  # not bold, as the interval holds 0
    assert found[2][0].startswith("digits, 58 epochs") and found[3][0] == found[4][0] == ""


def test_a_study_that_goes_on_shows_the_last_weights_of_the_seeds_that_it_has(project):
    few = {"name": "cifar100_vit_ti16_few"}
    make_arm(project / "logs", "cifar100_102-two_views", [12, 10], alpha=0.0, **few)
    make_arm(project / "logs", "cifar100_102-rdrop_0.3", [10], alpha=0.3, **few)
    for arm, correct, ece in (("two_views", 488, 0.03), ("rdrop_0.3", 480, 0.1)):
        last = {"correct": correct, "total": 500, "accuracy": correct / 500, "nll": 0.3, "ece": ece}
        folder = project / "logs" / "study" / f"cifar100_102-{arm}-seed1"
        change_header(folder, lambda header, last=last: header["result"]["last"].update(test=last))
    (project / "README.md").write_text(page("kl"))
    main([])
    two_views, rdrop = rows(project / "README.md")[2:]
    assert two_views[0] == "CIFAR-100, 10 a class, 102 epochs (last weights)" and two_views[2] == "2"
    assert rdrop[1:] == ["R-Drop 0.3", "1", "96.00", "-1.60", "+0.000", "+7.00"]  # one seed has no interval
    (project / "README.md").write_text(page("seeds"))
    main([])
    assert rows(project / "README.md")[3][2:] == ["1", "98.00", "96.00"]


def test_the_first_table_says_what_was_not_run_and_takes_runs_that_were(project):
    for name in ("README.md", "README_cn.md"):
        (project / name).write_text(page("first"))
    main([])
    english, chinese = rows(project / "README.md"), rows(project / "README_cn.md")
    assert english[0] == ["model", "data", "paper", "others, audited", "ours"]
    assert english[2][:3] == ["ViT-B/16 + R-Drop", "CIFAR-100, 384 px", "**93.29**"]
    assert "93.01 (zbp" in english[2][3] and "92.71 (zpc" in english[2][3]
    assert {row[-1] for row in english[2:]} == {"not run yet"} and {row[-1] for row in chinese[2:]} == {"尚未运行"}
    recipe = {"name": "cifar100_vit_b16_rdrop"}
    make_run(project / "logs", "evidence/headline", 670, like="cifar100_vit_ti16", **recipe)
    main([])
    assert rows(project / "README.md")[2][-1] == "93.30 (n = 1)"


def test_a_stale_page_is_named_and_mended(project):
    make_arm(project / "logs", "digits-two_views", [12], alpha=0.0)
    path = project / "docs" / "page.md"
    path.write_text(page("kl"))
    main([])
    main(["--check"])
    right = path.read_text()
    path.write_text(right.replace("97.60", "97.61"))
    with pytest.raises(SystemExit, match=r"^docs/page\.md: tables are not what logs/ give"):  # Python exits with 1
        main(["--check"])
    assert "97.61" in path.read_text()  # --check writes nothing
    main([])
    assert path.read_text() == right


@pytest.mark.parametrize(
    ("text", "fragment"),
    [
        ("<!-- table kl -->\n", "each line <!-- table NAME --> needs a line <!-- end of table --> below it"),
        (page("kl").replace("<!-- end", "<!--end") + page("arms"), "README.md: each line <!-- table NAME --> needs"),
        (page("kll"), "NAME is one of first, answer, kl, arms"),
    ],
)
def test_markers_that_do_not_fit_are_named(project, text, fragment):
    (project / "README.md").write_text(text)
    with pytest.raises(UserError, match=fragment):
        main([])
    assert (project / "README.md").read_text() == text


def test_the_commands_of_the_arms_are_those_of_the_studies():
    page = (ROOT / "logs" / "README.md").read_text()
    found = re.findall(r"^\| (study/\S+-seed)\\\* \| [^|]+ \| `OMP_NUM_THREADS=1 (.*)` \|$", page, re.MULTILINE)
    names = {arm.split("/")[1].split("-")[0] for arm, _ in found}
    assert names >= {"cifar100_102", "cifar100", "cifar100_few", "digits"}
    expected = []
    for name in names:
        for run in runs_of(name, 1, list(STUDIES[name].arms), []):
            words = " ".join(run.arguments[: run.arguments.index("--seed")])
            expected.append((run.name.removesuffix("1"), f"bash run_train.sh {words} --seed N"))
    assert sorted(found) == sorted(expected)


# ---- two runs


_SAME = "the same to the last digit in N recorded values and all predictions"


@pytest.mark.parametrize(
    ("tag", "change", "expected"),
    [
        ("train/loss", 0, _SAME),
        ("train/images_per_second", 1, _SAME),
        ("new", 1, f"{_SAME}; not compared, as one of them alone has it: new"),  # what later code records besides
        ("train/loss", 1e-12, "the two part at step 30 in train/loss"),
    ],
)
def test_a_repeated_run_is_told_by_its_records(tmp_path, capsys, tag, change, expected):
    a, b = (make_run(tmp_path, name) for name in "ab")
    records = [json.loads(line) for line in (b / "metrics.jsonl").read_text().splitlines()]
    row = next(row for row in records if row["step"] == 30)
    row[tag] = row.get(tag, 0) + change
    (b / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))
    values = sum(len(row.keys() - {"step", "train/images_per_second", "new"}) for row in records)
    expected = expected.replace(" N ", f" {values:,} ")
    assert compare(a, b) == compare(b, a) == expected
    main(["--compare", str(a), str(b)])
    assert capsys.readouterr().out == f"runs:       {expected}\n"


def test_one_other_prediction_is_told(tmp_path):
    a, b = make_run(tmp_path, "a", [7]), make_run(tmp_path, "b", [8])
    assert compare(a, b) == "the two part in the predictions (predicted)"


def test_runs_that_cannot_be_compared_are_refused_in_one_line(tmp_path):
    a, damaged, missing, going = (make_run(tmp_path, name) for name in ("a", "damaged", "missing", "going"))
    content = (damaged / "predictions.npz").read_bytes()
    (damaged / "predictions.npz").write_bytes(content[: len(content) // 2])
    (missing / "predictions.npz").unlink()
    change_header(going, lambda header: header.update(finished=False))
    for run, fragment in (
        (damaged, "predictions.npz: missing or damaged"),
        (missing, "predictions.npz: missing or damaged"),
        (going, "this run has not finished"),
        (tmp_path / "nowhere", "nowhere: no run.json in it; give the folder of a run"),
    ):
        with pytest.raises(UserError, match=fragment):
            compare(a, run)
