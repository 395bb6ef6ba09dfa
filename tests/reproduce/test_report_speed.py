"""The section on speed says what the records of the benchmark say."""

import shutil
from pathlib import Path
from statistics import median

import pytest

from common.errors import UserError
from reproduce import ROOT, bench, report
from reproduce.bench_parts import PARTS, headline
from reproduce.report_speed import bench_page, lines, read_bench, speed_sections
from reproduce.report_speed_text import SPEED_TEXT
from reproduce.report_targets import targets
from reproduce.report_targets_text import TARGETS_TEXT
from reproduce.results import CITED

GB = 10**9


def made(part: str, **competitors) -> dict:
    """The record of a part whose competitors took so many seconds in each of three turns."""
    ours = competitors["ours"]
    machine = {"cores": 2, "processor": "A Processor", "packages": {"paddlepaddle": "3.3.1", "torch": "2.13.0+cpu"},
               "git_dirty": False,
               "command": f"python -m reproduce.bench --part {part}", "started": "2026-01-01T00:00:00"}  # fmt: skip
    found = {}
    for name, seconds in competitors.items():
        ratios = [a / b for a, b in zip(seconds, ours, strict=True)]
        found[name] = {
            "seconds": seconds, **bench._spread(seconds), "n": 3, "ratio_to_ours": bench._spread(ratios),
            "images_per_second": 8 / median(seconds), "memory_before_bytes": 1 * GB, "memory_peak_bytes": 3.5 * GB,
            "flops_per_second": 60e9, "share_of_peak": 0.4, "product_flops_per_second": 150e9,
            "first_step": [s / 2 for s in seconds],
        }  # fmt: skip
    about = {"model": "ViT-B_16", "image_size": 224, "from_size": 32, "batch_size": 8, "classes": 100, "images": 8}
    return {"part": part, "machine": machine, "repeat": 3, **about, "peak": {"product_size": 2048},
            "left_out": {"pillow": "gone"}, "competitors": found}  # fmt: skip


@pytest.fixture
def project(tmp_path) -> Path:
    """What the report reads, with a benchmark of known figures and READMEs that have a place for them."""
    for name in (*CITED, "published"):
        shutil.copytree(ROOT / "logs" / name, tmp_path / "logs" / name)
    for name in ("README.md", "README_cn.md", "logs/README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    folder = tmp_path / "logs" / "bench"
    step = made("step_b16", ours=[2.0, 1.0, 4.0], seed_like=[5.0, 3.0, 8.0], ours_split_6=[1.0, 1.0, 1.0])
    bench.write(step | {"headline": headline()}, folder)
    bench.write(made("input", ours=[0.01, 0.02, 0.04], pillow=[0.04, 0.04, 0.04]), folder)
    bench.write(made("evaluation", ours=[0.2, 0.4, 0.8], pytorch=[0.1, 0.2, 0.4]), folder)
    bench.write(made("start", ours=[4.0, 5.0, 6.0], pytorch=[8.0, 10.0, 14.0]), folder)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "missed"),
    [
        ({}, set()),
        ({"pytorch": 0.9}, {"pytorch"}),
        ({"seed_like": 3.9}, {"seed_like"}),
        ({"ours_baseline": 0.5}, {"one view"}),
        ({"memory": 4 * GB}, {"memory"}),
        ({"paddle_vision": 19.0}, {"input"}),
    ],
)
def test_targets_are_reached_or_missed_with_the_reason(changes, missed):
    times = {"pytorch": 1.1, "seed_like": 4.1, "ours_baseline": 0.52, "paddle_vision": 21.0} | changes
    step = made("step_b16", ours=[1.0] * 3, **{name: [times[name]] * 3 for name in ("pytorch", "seed_like",
                                                                                    "ours_baseline")})  # fmt: skip
    step["competitors"]["ours"]["memory_peak_bytes"] = changes.get("memory", 3 * GB)
    records = {"step_b16": step, "input": made("input", ours=[1.0] * 3, paddle_vision=[times["paddle_vision"]] * 3)}
    for language, words in TARGETS_TEXT.items():
        text = "\n".join(targets(records, language))
        assert text.count(f"| {words['no']} |") == len(missed) and text.count(f"| {words['yes']} |") == 5 - len(missed)
        assert {kind for kind, reason in words["reasons"].items() if reason in text} == missed & words["reasons"].keys()
    assert targets({"start": made("start", ours=[1.0] * 3)}, "en") == []


def row(text: str, first: str) -> list[str]:
    """The other cells of the only row of a table that begins so."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {first} |"))
    return [cell.strip() for cell in line.strip("|").split("|")[1:]]


@pytest.mark.parametrize("language", ["en", "cn"])
def test_the_section_says_what_the_record_says(project, language):
    text = speed_sections(project)[{"en": "README.md", "cn": "README_cn.md"}[language]]
    words = SPEED_TEXT[language]
    assert row(text, words["names"]["ours"])[:3] == ["2.00 (1.00 – 4.00)", "1", "4.00"]
    assert row(text, words["names"]["seed_like"]) == [
        "5.00 (3.00 – 8.00)", "2.50 (2.00 – 3.00)", "1.60", "3.50 (2.50)", "60.0 (40 %)", "3"]  # fmt: skip
    assert row(text, words["names"]["split"].format(6))[1] == "0.500 (0.250 – 1.00)"
    joined = " ".join(text.split())
    for cell in ("400 (200 – 800)", "200 (200 – 200", "2.50 (2.00 – 3.00)", "5.00 (4.00 – 7.00)", "2.13.0+cpu"):
        assert cell in joined.replace("（", " (").replace("）", ")"), cell
    assert joined.count("A Processor") == 1  # all parts were measured there
    assert row(text, words["sum"])[0] == "110.97"  # two operations for each of 55.5e9 multiply-adds
    hours = 6 * 512 * 10_000 * 110.97e9 / 125e12 / 0.4 / 3600
    assert row(text, "V100, fp16") == ["125", f"{2 * hours:.1f}", f"{hours:.1f}", f"{hours / 1.5:.1f}"]
    rate = 6 * 512 * 10_000 * 110.97e9 / 54 / 3600 / 1e12
    assert f"{rate:.1f} TFLOP/s" in joined and f"{100 * rate / 125:.0f} %" in joined


def test_both_languages_have_every_word_and_every_competitor_a_name(project):
    english, chinese = SPEED_TEXT["en"], SPEED_TEXT["cn"]
    assert set(english) - set(chinese) == {"page"} and set(chinese) < set(english)
    competitors = {c.name for part in PARTS.values() for c in part().competitors if "split" not in c.name}
    for words in (english, chinese):
        assert competitors | {"split"} == set(words["names"]) and set(words["parts"]) == set(english["parts"])
    for record in read_bench(project / "logs" / "bench").values():
        assert lines(record, "cn") != lines(record, "en") and "{" not in "".join(lines(record, "cn"))


def with_markers(path: Path, inside: str = "") -> None:
    text = path.read_text()
    if report.SPEED_BEGIN not in text:
        path.write_text(f"{text}\n{report.SPEED_BEGIN}\n{inside}\n{report.SPEED_END}\n")


def test_report_fills_the_section_and_check_notices_a_changed_digit(project):
    for name in ("README.md", "README_cn.md"):
        with_markers(project / name)
    with pytest.raises(UserError, match=r"^README.md, line \d+: stale"):
        report.main(["--check", "--root", str(project)])
    report.main(["--root", str(project)])
    report.main(["--check", "--root", str(project)])
    path = project / "README_cn.md"
    path.write_text(path.read_text().replace("2.50 (2.00 – 3.00)", "2.50 (2.00 – 3.10)"))
    with pytest.raises(UserError, match=r"^README_cn.md, line \d+: stale, it has '.*3.10.*' where logs/ say '.*3.00"):
        report.main(["--check", "--root", str(project)])


def test_without_measurements_the_section_is_left_as_it_is(project):
    shutil.rmtree(project / "logs" / "bench")
    for name in ("README.md", "README_cn.md"):
        with_markers(project / name, "Not measured yet.")
    before = (project / "README.md").read_text()
    report.main(["--root", str(project)])
    after = (project / "README.md").read_text()
    begin = report.SPEED_BEGIN
    assert after.split(begin)[1] == before.split(begin)[1] and speed_sections(project) == {}


@pytest.mark.parametrize("content", ["", "[]", '{"part": "input"}', '{"part": "step_ti16", "competitors": {}}'])
def test_a_damaged_record_is_named_with_the_command_that_mends_it(tmp_path, content):
    (tmp_path / "step_ti16.json").write_text(content)
    with pytest.raises(UserError, match=r"step_ti16.json: not a record of .*; measure again with --part step_ti16$"):
        read_bench(tmp_path)


def test_the_committed_page_is_that_of_the_records():
    folder = ROOT / "logs" / "bench"
    if not (records := read_bench(folder)):
        pytest.skip("logs/bench/ holds no measurement: python -m reproduce.bench writes it")
    assert (folder / "README.md").read_text() == bench_page(records)
