"""What logs/ holds for the report, and the result sections of the READMEs made from it."""

from dataclasses import dataclass
from pathlib import Path
from textwrap import TextWrapper

import pandas as pd

from reproduce import ROOT, report_answers, report_runs
from reproduce import report_tables as tables
from reproduce.literature import CONTEXT
from reproduce.plot import Drawing, drawings
from reproduce.published_record import PublishedRecord, read_record
from reproduce.report_text import CAPTIONS, TEXT
from reproduce.results import CITED, Group, Pair, find_groups, find_pairs, find_runs


@dataclass(frozen=True, eq=False)
class Evidence:
    """The runs that the READMEs cite, the record of the published logs, and the figures that both allow."""

    record: PublishedRecord
    runs: pd.DataFrame
    groups: list[Group]
    pairs: list[Pair]
    drawings: list[Drawing]


def read_evidence(root: Path = ROOT) -> Evidence:
    """Raises UserError for a file under `root`/logs that is damaged or missing."""
    logs = Path(root) / "logs"
    runs = find_runs(logs, CITED)
    groups = find_groups(runs)
    return Evidence(read_record(logs / "published"), runs, groups, find_pairs(groups), drawings(logs)[0])


def sections(evidence: Evidence) -> dict[str, str]:
    """The Markdown between the markers of each README, by its path."""
    return {
        "README.md": _results(evidence, "en"),
        "README_cn.md": _results(evidence, "cn"),
        "logs/README.md": report_runs.raw_sections(evidence.runs, evidence.groups),
    }


def _results(evidence: Evidence, language: str) -> str:
    words = TEXT[language]
    target_was_run = any(tables.is_target(group) for group in evidence.groups)
    parts = [
        words["published"],
        tables.markdown(tables.published_table(evidence.record, evidence.groups, language)),
        " ·\n".join(tables.sources(language)),
        CONTEXT[words["index"]],
        tables.claims_line(evidence.record, language),
        *_figures(evidence, language, "published_accuracy"),
        *(
            tables.markdown(part) if isinstance(part, tables.Table) else part
            for part in report_answers.answers(evidence.groups, evidence.pairs, language)
        ),
        words["headline run" if target_was_run else "headline"],
        *(
            part
            for groups in report_runs.by_recipe(evidence.groups)
            for part in (
                report_runs.recipe_line(groups, language),
                tables.markdown(report_runs.recipe_table(groups, evidence.pairs, language)),
            )
        ),
        words["runs"],
        *_nll_differences(evidence, language),
        *_figures(evidence, language, "pair", "strength", "cost", "kl_weight"),
        words["more"],
    ]
    return "\n\n".join(part if part.startswith("|") else wrapped(part) for part in parts)


def _nll_differences(evidence: Evidence, language: str) -> list[str]:
    words = TEXT[language]
    if not evidence.pairs:
        return [words["no pairs"]]
    return [words["nll differences"], tables.markdown(report_runs.nll_table(evidence.pairs, language))]


def wrapped(text: str) -> str:
    """Paragraphs and lists in lines of 120 characters where there are spaces."""
    fill = TextWrapper(120, subsequent_indent="  " if text.startswith("- ") else "", break_long_words=False,
                       break_on_hyphens=False).fill  # fmt: skip
    return "\n".join(fill(line) for line in text.split("\n"))


def _figures(evidence: Evidence, language: str, *kinds: str) -> list[str]:
    chosen = [drawing for kind in kinds for drawing in evidence.drawings if drawing.kind == kind]
    return [
        f"![{drawing.name}](images/figures/{drawing.name}.png)\n\n{caption(drawing, language)}" for drawing in chosen
    ]


def caption(drawing: Drawing, language: str) -> str:
    return CAPTIONS[drawing.kind][TEXT[language]["index"]].format(**drawing.about)
