"""Tables from logs/: results and speed in the READMEs, results as one page, and two runs compared image by image.

    python -m reproduce.report                           rewrite them in README.md, README_cn.md, logs/README.md
    python -m reproduce.report --html                    write images/report.html, one page that needs nothing else
    python -m reproduce.report --check                   change nothing; exit 2 and name the first line that is stale
    python -m reproduce.report --compare RUN_A RUN_B     accuracy and NLL of A minus B on the same test images, and
                                                         whether one repeats the other to the last digit

READMEs and page show the runs in logs/evidence/ and logs/study/ (`run_train.sh RECIPE --run study/NAME`); a run of your
own is shown once its folder is moved there. What a step costs is in logs/bench/ (`python -m reproduce.bench`). Figures
come from `python -m reproduce.plot`.
"""

import argparse
from pathlib import Path

from common.atomic import atomic_write
from common.errors import UserError
from reproduce import ROOT
from reproduce.cli import Parser, parse, run_command, say
from reproduce.compare import compare, describe, find_run
from reproduce.report_page import page
from reproduce.report_sections import Evidence, read_evidence, sections
from reproduce.report_speed import speed_sections
from reproduce.results import CITED, find_runs

BEGIN = "<!-- results:begin, written by `python -m reproduce.report` from logs/: do not edit -->"
END = "<!-- results:end -->"
SPEED_BEGIN = "<!-- speed:begin, written by `python -m reproduce.report` from logs/bench/: do not edit -->"
SPEED_END = "<!-- speed:end -->"
PAGE, FIGURES = Path("images/report.html"), Path("images/figures")
_SHOWN = 60  # characters of a stale line in a message


def fresh_readmes(root: Path, evidence: Evidence) -> dict[str, str]:
    """Path -> text of each README with its results and speeds as logs/ say them; the rest is as it is."""
    texts = {name: put_between_markers((root / name).read_text(), section, name)
             for name, section in sections(evidence).items()}  # fmt: skip
    for name, section in speed_sections(root).items():
        texts[name] = put_between_markers(texts[name], section, name, SPEED_BEGIN, SPEED_END)
    return texts


def put_between_markers(text: str, section: str, name: str, begin: str = BEGIN, end: str = END) -> str:
    """`text` with `section` between its markers. Raises UserError where these are not there, once each and in order."""
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise UserError(f"{name}: needs the line {begin} once and below it the line {end} once; restore them")
    before, rest = text.split(begin)
    return f"{before}{begin}\n\n{section}\n\n{end}{rest.split(end)[1]}"


def check(root: Path, evidence: Evidence) -> None:
    """Raise UserError for the first line of a README or of the page that is not what logs/ say."""
    for name, text in fresh_readmes(root, evidence).items():
        _check_lines(name, (root / name).read_text(), text, "python -m reproduce.report")
    if (root / PAGE).exists():
        text = page(evidence, root / FIGURES)
        _check_lines(PAGE, (root / PAGE).read_text(), text, "python -m reproduce.plot, then reproduce.report --html")


def _check_lines(name, old: str, new: str, remedy: str) -> None:
    if old == new:
        return
    has, should = old.splitlines(), new.splitlines()
    number = next((i for i, pair in enumerate(zip(has, should, strict=False)) if pair[0] != pair[1]),
                  min(len(has), len(should)))  # fmt: skip
    lines = [text[number] if number < len(text) else "" for text in (has, should)]
    differ = next((i for i, pair in enumerate(zip(*lines, strict=False)) if pair[0] != pair[1]), 0)
    start = max(0, differ - _SHOWN // 2)
    shown = [line[start : start + _SHOWN] for line in lines]
    raise UserError(f"{name}, line {number + 1}: stale, it has '{shown[0]}' where logs/ say '{shown[1]}'; run {remedy}")


def main(argv=None) -> None:
    parser = Parser(prog="python -m reproduce.report", description=__doc__,
                    formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    task = parser.add_mutually_exclusive_group()
    task.add_argument("--html", action="store_true", help=f"write {PAGE}")
    task.add_argument("--check", action="store_true", help="exit 2 when a README or the page is stale")
    task.add_argument("--compare", nargs=2, metavar=("RUN_A", "RUN_B"), help="folders of runs, or names under logs/")
    parser.add_argument("--root", default=str(ROOT), help="folder with READMEs, logs/ and images/ (default: here)")
    options = parse(parser, argv)
    root = Path(options.root)
    if options.compare:
        for what, text in describe(compare(*map(find_run, options.compare)), *options.compare):
            say(what, text)
        return
    evidence = read_evidence(root)
    if options.check:
        check(root, evidence)
        say("check", f"the results in {', '.join(sections(evidence))} are what logs/ say")
        return
    for group in evidence.groups:
        for name in group.repeated:
            say("left out", f"{name}: its recipe and seed are those of a run that is counted")
    own = len(find_runs(root / "logs")) - len(evidence.runs)
    if own:
        say("left out", f"{own} runs outside {' and '.join(f'logs/{name}/' for name in CITED)}")
    texts = {PAGE: page(evidence, root / FIGURES)} if options.html else fresh_readmes(root, evidence)
    for name, text in texts.items():
        with atomic_write(root / name, "w") as file:
            file.write(text)
        say("written", str(name))


if __name__ == "__main__":
    run_command(main)
