"""The report: READMEs and page are what logs/ say, one changed digit is noticed, two runs are compared correctly."""

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from conftest import SHARED, assert_user_error
from making_runs import change_header, make_run
from scipy import stats

from common.errors import UserError
from reproduce import ROOT, published_record
from reproduce.compare import bootstrap, compare, describe, mcnemar
from reproduce.literature import ROWS, SOURCES, TARGET
from reproduce.recipes import RECIPES
from reproduce.report import BEGIN, END, main
from reproduce.report_answers import answers
from reproduce.report_page import _FORMS
from reproduce.report_runs import differences_cell, nll_table, reading, recipe_table
from reproduce.report_sections import read_evidence, sections
from reproduce.report_tables import Table, html_table, is_target, published_table
from reproduce.report_text import LANGUAGES, TEXT
from reproduce.results import CITED, find_groups, find_runs

READMES = ("README.md", "README_cn.md", "logs/README.md")


@pytest.fixture
def project(tmp_path) -> Path:
    """A copy of what the report reads and writes."""
    root = tmp_path / "project"
    (root / "logs").mkdir(parents=True)
    for name in (*CITED, "bench", "growth_stages", "published"):
        shutil.copytree(ROOT / "logs" / name, root / "logs" / name)
    for name in READMES:
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "images" / "figures", root / "images" / "figures")
    shutil.copy(ROOT / "images" / "report.html", root / "images")
    return root


def check(root) -> None:
    main(["--check", "--root", str(root)])


# ---- what is committed is what the logs say


def test_the_committed_readmes_and_page_are_what_the_logs_say(command):
    done = command("reproduce.report", "--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["README.md", "README_cn.md", "logs/README.md", "images/report.html"])
def test_one_changed_digit_is_named_with_its_line(project, name):
    check(project)
    header = json.loads((project / "logs" / "evidence" / "cifar100_vit_ti16" / "run.json").read_text())
    figure = f"{100 * header['result']['best']['test']['accuracy']:.2f}"
    path = project / name
    text = path.read_text()
    place = text.index(figure, text.index("results:begin") if name in READMES else 0)
    wrong = figure[:-1] + str((int(figure[-1]) + 1) % 10)
    path.write_text(text[:place] + wrong + text[place + len(figure) :])
    line = text[:place].count("\n") + 1
    with pytest.raises(
        UserError, match=rf"^{name}, line {line}: stale, it has '.*{wrong}.*' where logs/ say '.*{figure}"
    ):
        check(project)


def test_a_stale_readme_is_one_line_and_exit_code_2(project, command):
    path = project / "README.md"
    path.write_text(path.read_text().replace("best 93.01", "best 93.02"))
    assert_user_error(command("reproduce.report", "--check", "--root", project), "README.md, line", "best 93.02")


def test_a_changed_log_makes_all_of_them_stale_and_report_mends_them(project, capsys):
    before = {name: (project / name).read_text() for name in READMES}
    folder = project / "logs" / "evidence" / "digits"
    change_header(folder, lambda header: header["result"]["best"]["test"].update(accuracy=0.9312))
    with pytest.raises(UserError, match=r"README.md, line \d+: stale"):
        check(project)
    main(["--root", str(project)])
    with pytest.raises(UserError, match=r"images/report.html, line \d+: stale"):
        check(project)
    main(["--html", "--root", str(project)])
    check(project)
    for name, old in before.items():
        new = (project / name).read_text()
        assert new != old and new.split(BEGIN)[0] == old.split(BEGIN)[0] and new.split(END)[1] == old.split(END)[1]
    assert "written:    README_cn.md" in capsys.readouterr().out


@pytest.mark.parametrize("marker", [BEGIN, END])
def test_a_readme_without_markers_is_left_alone(project, marker):
    path = project / "README_cn.md"
    path.write_text(path.read_text().replace(marker, ""))
    before = {name: (project / name).read_text() for name in READMES}
    with pytest.raises(UserError, match=r"README_cn\.md: needs the line"):
        main(["--root", str(project)])
    assert {name: (project / name).read_text() for name in READMES} == before


def test_all_pictures_and_logs_that_the_readmes_and_the_page_link_to_are_there():
    for name in (*READMES, "images/report.html"):
        text = (ROOT / name).read_text()
        if name in READMES:
            links = re.findall(r"\]\(([^)#]+)\)", text[text.index(BEGIN) : text.index(END)])
        else:
            links = re.findall(r'<a href="([^"#]+)"', text)
        local = [link for link in links if "://" not in link]
        assert local
        for link in local:
            assert ((ROOT / name).parent / link).exists(), f"{name}: {link}"


# ---- the tables


def test_rows_that_were_not_run_say_so_and_a_run_fills_the_row_it_belongs_to(project):
    def cells(language):
        evidence = read_evidence(project)
        return [row[-1] for row in published_table(evidence.record, evidence.groups, language).rows]

    assert {cell.strip("*") for cell in cells("en")} == {"not run yet"}
    assert {cell.strip("*") for cell in cells("cn")} == {"尚未运行"}
    headline = {"name": "cifar100_vit_b16_rdrop", "train_per_class": 0, "batch_size": 512, "model": "ViT-B_16",
                "image_size": 384, "num_steps": 10_000, "alpha": 0.3, "kl_sum_over": 32,
                "pretrained": "elsewhere/ViT-B_16.npz"}  # fmt: skip
    for seed, wrong in ((1, 660), (2, 700)):
        make_run(project / "logs" / "study", f"headline{seed}", wrong, like="cifar100_vit_ti16", seed=seed, **headline)
    short = headline | {"num_steps": 100}
    make_run(project / "logs" / "study", "short", 10, like="cifar100_vit_ti16", seed=1, **short)
    found = cells("en")
    half = stats.t.ppf(0.975, 1) * 0.2 / 2**0.5 * 2**0.5
    assert found[ROWS.index(TARGET)] == (f"93.20 ± {half:.2f}, R-Drop, alpha 0.3, KL summed over 32, n = 2")
    assert sum("not run yet" in cell for cell in found) == len(ROWS) - 1
    assert "**The headline has not been run**" not in sections(read_evidence(project))["README.md"]


def test_a_figure_says_when_it_was_chosen_on_the_test_set_or_from_a_changed_tree(project):
    folder = make_run(project / "logs" / "study", "loose", seed=9, select_on="test", alpha=7.0)
    change_header(folder, lambda header: header["result"]["best"].update(selected_on="test"))
    change_header(folder, lambda header: header["machine"].update(git_dirty=True))
    pictures = make_run(project / "logs" / "study", "pictures", seed=9, alpha=8.0)
    change_header(pictures, lambda header: header["result"].update(test_is="validation"))
    groups = [group for group in read_evidence(project).groups if group.recipe == "digits"]
    rows = {row[0]: row[1] for row in recipe_table(groups, [], "en").rows}
    assert rows["R-Drop, alpha 7, select_on test"] == "98.00 (chosen on the test set, from a changed working tree)"
    assert rows["R-Drop, alpha 8"] == "98.00 (validation images: there is no test set)"


TWICE = {"num_steps": 2000, "warmup_steps": 200, "eval_every": 200}


def test_the_reading_of_a_difference_claims_no_more_than_its_interval(tmp_path):
    root = tmp_path
    shutil.copytree(ROOT / "logs" / "published", root / "logs" / "published")
    wrong = {"above": ([5, 6, 5], [15, 16, 16]), "below": ([15, 16, 16], [5, 6, 5]), "holds 0": ([5, 20, 9], [9, 9, 9]),
             "one": ([5], [15])}  # fmt: skip
    for number, (one, other) in enumerate(wrong.values()):
        for seed, counts in enumerate(zip(one, other, strict=True)):
            for views, count in zip((2, 1), counts, strict=True):
                make_run(root / "logs" / "study", f"{number}-{views}-{seed}", count, seed=seed, num_views=views,
                         name=f"recipe {number}", momentum=number / 10)  # fmt: skip
    evidence = read_evidence(root)
    pairs = evidence.pairs
    assert [reading(pair.difference("accuracy")) for pair in pairs] == list(wrong)
    table = recipe_table(evidence.groups, pairs, "en")
    cells = [row[table.header.index("minus baseline, as many steps")] for row in table.rows]
    assert cells[::2] == [""] * 4  # the baselines
    cells = cells[1::2]
    assert [cell.startswith("**") for cell in cells] == [True, True, False, False]
    assert cells[0].startswith("**+2.07 ± ") and cells[0].endswith("**") and cells[3] == "+2.00"
    text, *_ = answers(evidence.groups, pairs, "en")
    assert "better than that of the baseline, as many steps, in 1 of 3 comparisons and worse in 1 (" in text  # not of 4


def test_a_difference_over_fewer_seeds_than_its_arm_has_says_so(tmp_path):
    shutil.copytree(ROOT / "logs" / "published", tmp_path / "logs" / "published")
    for seed in range(3):
        for views in (1, 2)[seed == 2 :]:
            make_run(tmp_path / "logs" / "study", f"{views}-{seed}", seed=seed, num_views=views)
    evidence = read_evidence(tmp_path)
    (cell,) = filter(None, (row[2] for row in recipe_table(evidence.groups, evidence.pairs, "en").rows))
    assert cell.endswith(", n = 2") and nll_table(evidence.pairs, "en").rows[0][2].endswith(", n = 2")


def test_the_answer_counts_the_strengths_of_r_drop_alone(tmp_path):
    """Neither two views without KL nor shared blocks are R-Drop; each kind of reference has its own verdict."""
    shutil.copytree(ROOT / "logs" / "published", tmp_path / "logs" / "published")
    arms = {"baseline": ([9, 8, 9], {"num_views": 1}), "twice": ([5, 4, 5], {"num_views": 1, **TWICE}),
            "no KL": ([9, 9, 9], {"alpha": 0.0}), "weak": ([9, 7, 9], {"alpha": 0.3}),
            "strong": ([4, 3, 5], {"alpha": 3.0}),
            "shared": ([1, 1, 1], {"alpha": 3.0, "views_split_at": 2})}  # fmt: skip
    for name, (wrong, settings) in arms.items():
        for seed, count in enumerate(wrong):
            make_run(tmp_path / "logs" / "study", f"{name}-{seed}", count, seed=seed, **settings)
    evidence = read_evidence(tmp_path)
    pairs = evidence.pairs
    (weak,) = (group for group in evidence.groups if group.strength == 0.3)
    text, table, shared, scope = answers(evidence.groups, pairs, "en")
    assert "`digits` views that share their first 2 blocks keep +1.53 of the +0.93 points" in shared
    same = "(with the last weights 0 and 0)"  # make_run leaves them as they are
    assert f"better than that of the baseline, as many steps, in 1 of 2 comparisons and worse in 0 {same}" in text
    assert f"better than that of the baseline, twice the steps, in 0 of 2 comparisons and worse in 1 {same}" in text
    assert f"better than that of the two views without KL, in 1 of 2 comparisons and worse in 0 {same}" in text
    assert scope == TEXT["en"]["scope"] and answers(evidence.groups, [], "en") == []
    (row,) = table.rows  # of the two strengths the paper's
    assert dict(zip(table.header, row, strict=True)) == {
        "study": "`digits`", "seeds": "3",
        **{f"{what} minus {words}": differences_cell(weak, pairs, against, column, TEXT["en"])
           for what, column in (("top-1", "accuracy"), ("NLL", "nll"))
           for against, words in TEXT["en"]["against"].items() if against != "whole"},
    }  # fmt: skip
    table = recipe_table(evidence.groups, pairs, "en")
    shared = dict(zip(table.header, table.rows[-1], strict=True))
    assert shared["arm"].endswith("first 2 blocks shared")
    assert shared["minus two views without KL"] == shared["minus baseline, twice the steps"] == ""  # they cost less
    assert shared["minus R-Drop, no block shared"].startswith("**+0.60 ± ")


@pytest.mark.parametrize(("without_kl", "told"), [((5, 6, 5), True), ((16, 15, 16), False)])
def test_a_gain_is_the_second_views_where_the_kl_adds_none(tmp_path, without_kl, told):
    shutil.copytree(ROOT / "logs" / "published", tmp_path / "logs" / "published")
    arms = {
        "baseline": ((20, 21, 20), {"num_views": 1}),
        "no KL": (without_kl, {"alpha": 0.0}),
        "R-Drop": ((6, 5, 6), {}),
    }
    for name, (wrong, settings) in arms.items():
        for seed, count in enumerate(wrong):
            make_run(tmp_path / "logs" / "study", f"{name}-{seed}", count, seed=seed, **settings)
    evidence = read_evidence(tmp_path)
    assert (TEXT["en"]["second view finding"] in answers(evidence.groups, evidence.pairs, "en")) == told


@pytest.mark.parametrize("lowest", [1.2, 0.9])
def test_clipping_is_told_of_where_every_record_shows_it(tmp_path, lowest):
    shutil.copytree(ROOT / "logs" / "published", tmp_path / "logs" / "published")
    for views, norms in ((1, (lowest, 2.0)), (2, (4.0, 9.0))):
        for seed in (0, 1):
            folder = make_run(tmp_path / "logs" / "study", f"{views}-{seed}", seed=seed, num_views=views)
            rows = [json.dumps({"step": step, "train/gradient_norm": norm}) for step, norm in enumerate(norms)]
            (folder / "metrics.jsonl").write_text("\n".join(rows))
    evidence = read_evidence(tmp_path)
    found = [text for text in answers(evidence.groups, evidence.pairs, "en") if "clipped to the norm 1" in str(text)]
    expected = "it was 1.6 on average (baseline) to 6.5 (R-Drop, alpha 1), and 1.2 or more in every record"
    assert len(found) == (lowest > 1) and all(expected in text for text in found)
    (folder / "metrics.jsonl").write_text("")  # a run from before norms were recorded
    assert not [text for text in answers(evidence.groups, evidence.pairs, "en") if "clipped to the norm 1" in str(text)]


def test_the_recipe_of_other_ingredients_is_not_what_the_paper_ran(tmp_path):
    for name in ("cifar100_vit_b16_rdrop", "cifar100_vit_b16_best"):
        make_run(tmp_path, name, **dataclasses.asdict(RECIPES[name]))
    found = {group.recipe: is_target(group) for group in find_groups(find_runs(tmp_path))}
    assert found == {"cifar100_vit_b16_rdrop": True, "cifar100_vit_b16_best": False}


def test_every_published_figure_has_a_source_and_both_languages_have_every_word():
    assert {source for row in ROWS for _, source in row.others} <= set(SOURCES)
    assert all(len(pair) == len(LANGUAGES) and all(pair) for pair in SOURCES.values())
    record = read_evidence().record
    for language in LANGUAGES:
        table = published_table(record, [], language)
        assert all(len(row) == len(table.header) for row in table.rows)
        for number in range(1, len(SOURCES) + 1):
            used = [*table.header, *(cell for row in table.rows for cell in row)]
            assert any(f"[{number}]" in text for text in used), number
    assert {k for k in TEXT["cn"] if k not in TEXT["en"]} == set()


def test_the_audited_cell_is_that_of_the_record():
    record = read_evidence().record
    rows = published_table(record, [], "en").rows
    (cell,) = (row[5] for row in rows if row[5])
    assert cell == (
        "mean of 4 processes: best 93.01, last 93.01 (step 7,600); "
        "mean of 4 processes: best 92.98, last 92.86 (step 9,900); one process: best 93.40, last 92.81 (step 24,800)"
    )
    assert rows[ROWS.index(TARGET)][5] == cell


# ---- the record of the published logs


def test_the_record_is_what_the_audit_of_the_raw_logs_gives(tmp_path, monkeypatch):
    raw = SHARED / "published_logs" / "zbp"
    if not raw.is_dir():
        pytest.skip(f"the published logs are not at {raw}")
    monkeypatch.setattr(published_record, "ROOT", tmp_path)
    monkeypatch.setattr(published_record, "FOLDER", tmp_path / "again")
    published_record.write_record(
        published_record.audit([published_record.read_log(path) for path in sorted(raw.glob("*.log"))]),
        tmp_path / "again",
    )
    for name in ("audit.json", "accuracy.csv", "loss.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (ROOT / "logs" / "published" / name).read_bytes(), name


def test_a_record_of_a_part_of_the_logs_is_not_written(tmp_path, command):
    before = (ROOT / "logs" / "published" / "audit.json").read_bytes()
    assert_user_error(command("reproduce.published_record", tmp_path / "missing.log"), "missing.log: no such file")
    assert (ROOT / "logs" / "published" / "audit.json").read_bytes() == before


@pytest.mark.parametrize("name", ["audit.json", "accuracy.csv", "loss.csv"])
def test_a_damaged_record_is_named(project, name):
    (project / "logs" / "published" / name).write_text("")
    with pytest.raises(UserError, match=r"published: the record of the published logs is not whole"):
        check(project)


# ---- the page


class Page(HTMLParser):
    """Tags that are open, ids and addresses of a page."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.addresses, self.text = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href"):
                self.addresses.append((tag, value))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_needs_nothing_else():
    text = (ROOT / "images" / "report.html").read_text()
    page = Page(text)
    assert page.open == [] and len(page.ids) == len(set(page.ids))
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert all(tag == "a" for tag, address in page.addresses if not address.startswith("#"))
    inside = {address[1:] for _, address in page.addresses if address.startswith("#")}
    inside |= set(re.findall(r"url\(#([^)]+)\)", text))
    assert inside <= set(page.ids) and "@import" not in text and re.findall(r"url\((?!#)", text) == []
    assert 'name="viewport"' in text and "$" not in "".join(page.text)
    evidence = read_evidence()
    assert page.tags.count("svg") == page.tags.count("figure") == len(evidence.drawings)
    words = " ".join("".join(page.text).split())
    for verdict in evidence.record.verdicts:
        assert verdict["why"] in words


def test_a_missing_figure_is_named(project):
    (project / "images" / "figures" / "kl_weight.svg").unlink()
    with pytest.raises(UserError, match=r"kl_weight\.svg: no such figure; draw it first with python -m reproduce.plot"):
        main(["--html", "--root", str(project)])


def test_cells_become_html_without_letting_markup_through():
    table = Table(("a < b",), [("**x** `<y>` [z](logs/z) [w](https://w.org)",)])
    text = html_table(table, "../")
    assert "<th>a &lt; b</th>" in text and "<strong>x</strong> <code>&lt;y&gt;</code>" in text
    assert '<a href="../logs/z">z</a> <a href="https://w.org">w</a>' in text


def test_the_forms_of_the_loss_amount_to_the_weights_beside_them():
    weights = {row[0]: (float(row[2]), row[3], float(row[5])) for row in _FORMS.rows[:-1]}
    for name, (alpha, n, weight) in weights.items():
        assert weight == pytest.approx(alpha / 2 if name == "paper" else alpha * int(n.split("= ")[-1]))


# ---- the evidence side reads logs and nothing else


def test_nothing_of_training_is_imported():
    code = ("import sys, reproduce.report; print([m for m in sys.modules if m.split('.')[0] == 'models' "
            "or m in ('reproduce.train', 'reproduce.job', 'reproduce.recipes')])")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


# ---- two runs image by image


def test_comparison_of_runs_with_a_known_answer(tmp_path):
    a = make_run(tmp_path, "a", np.arange(0, 30), nll=0.10)  # wrong 0..29
    b = make_run(tmp_path, "b", np.arange(10, 60), nll=0.25)  # wrong 10..59
    found = compare(a, b)
    assert found.images == 500 and found.accuracies == pytest.approx((470 / 500, 450 / 500))
    assert (found.only_a, found.only_b) == (30, 10)
    assert found.mcnemar_p == pytest.approx(stats.binomtest(10, 40, 0.5).pvalue)
    gains = np.zeros(500)
    gains[:10], gains[30:60] = -1, 1
    half = 1.96 * gains.std() / np.sqrt(500)
    assert found.accuracy.value == pytest.approx(0.04)
    assert (found.accuracy.low, found.accuracy.high) == pytest.approx((0.04 - half, 0.04 + half), abs=0.002)
    assert found.nll == pytest.approx((-0.15,) * 3, abs=1e-6)
    assert compare(a, b) == found  # seeded
    assert compare(b, a).accuracy.value == pytest.approx(-0.04)
    text = dict(describe(found, "a", "b"))
    assert text["top-1, A-B"].startswith("+4.00 points") and "differ in accuracy" in text["reading"]


_SAME = "A and B are the same to the last digit in N recorded values and all predictions"


@pytest.mark.parametrize(("tag", "change", "expected"), [
    ("train/loss", 0, _SAME),
    ("train/images_per_second", 1, _SAME),
    ("new", 1, f"{_SAME}; not compared, as one of them alone has it: new"),  # what later code records besides
    ("train/loss", 1e-12, "A and B part at step 30 in train/loss"),
])  # fmt: skip
def test_a_repeated_run_is_told_by_its_records(tmp_path, tag, change, expected):
    a, b = (make_run(tmp_path, name) for name in "ab")
    rows = [json.loads(line) for line in (b / "metrics.jsonl").read_text().splitlines()]
    row = next(row for row in rows if row["step"] == 30)
    row[tag] = row.get(tag, 0) + change
    (b / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    values = sum(len(row.keys() - {"step", "train/images_per_second", "new"}) for row in rows)
    expected = expected.replace(" N ", f" {values:,} ")
    assert compare(a, b).records == compare(b, a).records == expected


def test_a_repeated_run_is_told_by_its_predictions(tmp_path):
    a, b = make_run(tmp_path, "a", nll=0.1), make_run(tmp_path, "b", nll=0.1 + 1e-7)
    assert compare(a, b).records == "A and B part in the predictions (nll)"


def test_bootstrap_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(1)
    covered = [low <= 0 <= high for _, low, high in bootstrap(rng.normal(size=(80, 300)), 500)]
    assert 0.88 < np.mean(covered) < 0.99


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (0, 1), (3, 3), (10, 30), (700, 612)])
def test_mcnemar_is_the_exact_binomial_test(only_a, only_b):
    expected = stats.binomtest(only_a, only_a + only_b, 0.5).pvalue if only_a + only_b else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected)


def test_the_same_run_twice_cannot_be_told_apart(command):
    done = command("reproduce.report", "--compare", "evidence/digits", "logs/evidence/digits")
    assert done.returncode == 0, done.stderr
    assert "+0.00 points" in done.stdout and "p = 1 (exact" in done.stdout
    assert "A and B are the same to the last digit in " in done.stdout
    assert "cannot be told apart" in done.stdout


def test_runs_that_cannot_be_compared_are_refused_in_one_line(tmp_path, command):
    a = make_run(tmp_path, "a")
    other = make_run(tmp_path, "other", like="cifar100_vit_ti16")
    short, labels, damaged = (make_run(tmp_path, name) for name in ("short", "labels", "damaged"))
    missing, going = (make_run(tmp_path, name) for name in ("missing", "going"))

    def shorten(columns):
        return {name: column[:-1] for name, column in columns.items()}

    def relabel(columns):
        moved = (columns["labels"] + 1) % 10
        return columns | {"labels": moved, "top5": (columns["top5"] + 1) % 10}

    for folder, change in ((short, shorten), (labels, relabel)):
        with np.load(folder / "predictions.npz") as file:
            columns = change(dict(file))
        np.savez(folder / "predictions.npz", **columns)
        hits = columns["labels"] == columns["top5"][:, 0]
        counts = {"correct": int(hits.sum()), "total": len(hits)}
        change_header(folder, lambda header, counts=counts: header["result"]["best"]["test"].update(counts))
    content = (damaged / "predictions.npz").read_bytes()
    (damaged / "predictions.npz").write_bytes(content[: len(content) // 2])
    (missing / "predictions.npz").unlink()
    change_header(going, lambda header: header.update(finished=False))
    for run, fragment in (
        (other, "500 images of digits, .* 10,000 of cifar100; compare runs with the same test set"),
        (short, "500 images of digits, .* 499 of digits"),
        (labels, "other labels from image 0 on"),
        (damaged, "predictions.npz: not readable as predictions"),
        (missing, "predictions.npz: no such file"),
        (going, "this run has not finished"),
        (tmp_path / "none", "none: not a run"),
    ):
        with pytest.raises(UserError, match=fragment):
            main(["--compare", str(a), str(run)])
    done = command("reproduce.report", "--compare", a, "nowhere")
    assert_user_error(done, "nowhere: not a run", "reproduce.results")
    assert json.loads((a / "run.json").read_text())["finished"]
