"""The pages say what the logs and the code say, in both languages, and their links lead somewhere."""

import functools
import hashlib
import json
import re

import pandas as pd
import pytest

from reproduce import ROOT, results
from reproduce.recipes import RECIPES
from reproduce.report import REFERENCES, plus_minus

READMES = ("README.md", "README_cn.md")
PAGES = [*READMES, "logs/README.md", "checkpoints/README.md", *sorted(f"docs/{p.name}" for p in ROOT.glob("docs/*.md"))]
LARGEST = 12 * 1024  # bytes of a README


def text(page):
    return (ROOT / page).read_text()


def result(run):
    return json.loads(text(f"logs/{run}/run.json"))["result"]


def code_blocks(page):
    return re.findall(r"^```\w*\n(.*?)^```$", text(page), re.MULTILINE | re.DOTALL)


def commands(page):
    """The lines of all code blocks without their comments, which are translated."""
    lines = [line.split(" #")[0].rstrip() for block in code_blocks(page) for line in block.splitlines()]
    return [line for line in lines if line]


def numbers(page):
    """Those of each row of the tables, in order of size, as languages order words differently."""
    rows = re.findall(r"^\|.*$(?!\n\|[ -]+\|)", text(page), re.MULTILINE)  # without headings
    return [sorted(re.findall(r"\d[\d.,]*\d|\d", row)) for row in rows]


@pytest.mark.parametrize("page", READMES)
def test_the_answer_stands_first_and_the_page_is_short(page):
    lines = text(page).splitlines()
    assert len(text(page).encode()) <= LARGEST
    assert "93.29" in lines[4] and "GPU" in lines[4] and "KL" in lines[4]  # the status sentence
    first = text(page).split("<!-- table first -->")[1].split("<!-- end of table -->")[0]
    assert {line.count("|") for line in first.splitlines() if line} == {6}  # 5 columns
    assert text(page).index("<!-- table first -->") < text(page).index("\n## ")


@pytest.mark.parametrize("page", READMES)
def test_the_two_commands_promise_what_is_on_record(page):
    section = text(page).split("\n## ")[1]
    digits = result("evidence/digits")
    for weights in ("best", "last"):
        assert f"{100 * digits[weights]['test']['accuracy']:.2f} %" in section


def test_both_readmes_have_the_same_commands_and_numbers():
    assert commands(READMES[0]) == commands(READMES[1])
    assert numbers(READMES[0]) == numbers(READMES[1])
    assert text(READMES[0]).count("\n## ") == text(READMES[1]).count("\n## ")


def test_differences_in_prose_are_those_of_the_logs():
    """Sentences are written by hand, and would stay as they are when runs are added."""
    runs, known = results.study_runs(), set()
    for _, row in pd.concat(results.differences(runs, arm) for arm in REFERENCES).iterrows():
        for measure in results.MEASURES:
            digits, scale = (3, 1) if measure.startswith("nll") else (2, 100)
            signed = plus_minus(row, measure, digits, scale, "+").strip("*")
            known |= {signed, signed[1:]}
    found = {}
    for page in (*READMES, "docs/results.md"):
        prose = re.sub(r"^\|.*$", "", text(page), flags=re.MULTILINE)
        found[page] = set(re.findall(r"[+-]?\d+\.\d+ ± \d+\.\d+", prose))
        assert found[page] and not found[page] - known, page
    assert found[READMES[0]] == found[READMES[1]]


def test_the_recipe_table_has_every_recipe_and_its_strength():
    rows = [line.split("|")[1:4] for line in text("README.md").split("## Recipes")[1].split("\n\n")[1].splitlines()]
    found = {}
    for names, _, strengths in rows[2:]:
        names, strengths = re.findall(r"`(\w+)`", names), [cell.strip() for cell in strengths.split(",")]
        found.update(zip(names, strengths * len(names), strict=False))
    expected = {
        name: "-" if recipe.num_views == 1 else f"{recipe.alpha:g} x {recipe.kl_sum_over}"
        for name, recipe in RECIPES.items()
    }
    assert found == expected


@pytest.mark.parametrize("page", ("README.md", *(page for page in PAGES if page.startswith("docs/"))))
def test_recipes_and_modules_that_commands_name_are_there(page):
    for line in commands(page):
        if recipe := re.match(r"(?:\w+=\S+ )*bash run_train\.sh (\w+)", line):
            assert recipe[1] in RECIPES, line
        if module := re.search(r"-m (reproduce|tests)\.([\w.]+)", line):
            assert (ROOT / module[1] / f"{module[2].replace('.', '/')}.py").exists(), line


def test_every_run_on_record_is_finished_and_of_a_commit():
    headers = sorted(path for name in ("evidence", "study") for path in (ROOT / "logs" / name).rglob("run.json"))
    assert headers
    for path in headers:
        header = json.loads(path.read_text())
        assert header["finished"] and header["machine"]["git_commit"] and not header["machine"]["git_dirty"], path
        assert (path.parent / "metrics.jsonl").exists() and (path.parent / "predictions.npz").exists(), path


def test_released_weights_give_the_figure_to_the_last_digit(command):
    weights = ROOT / "checkpoints" / "digits.pdparams"
    assert weights.stat().st_size < 1_000_000
    assert hashlib.sha256(weights.read_bytes()).hexdigest() in text("checkpoints/README.md")
    done = command("reproduce.evaluate")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    expected = result("evidence/digits")["best"]["test"]
    for key in ("correct", "total", "accuracy"):
        assert found[key] == expected[key]
    assert found["nll"] == pytest.approx(expected["nll"], rel=1e-4)  # another processor rounds otherwise


def test_the_growth_stage_figures_are_those_of_the_logs():
    rows = [line for line in text("docs/two_networks.md").splitlines() if line.startswith("| [`growth_stages")]
    assert len(rows) == 4
    for row in rows:
        last = result(re.search(r"\(\.\./logs/(growth_stages/\w+)\)", row)[1])["last"]
        networks = [last.get(f"test_{which}") for which in ("first", "second")] + [last["test"]]
        cells = [f"{100 * found['accuracy']:.2f}" if found else "-" for found in networks]
        assert [cell.strip() for cell in row.split("|")[3:7]] == [*cells, f"{last['test']['nll']:.3f}"]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_within_the_project_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", text(page)):
        assert "\n" not in target
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
