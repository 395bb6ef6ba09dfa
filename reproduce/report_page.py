"""images/report.html: one page that needs nothing else, with the tables, the figures and R-Drop explained."""

import html
import re
from pathlib import Path
from string import Template

from common.errors import UserError
from reproduce import report_answers, report_runs
from reproduce import report_tables as tables
from reproduce.literature import CONTEXT, TARGET
from reproduce.report_sections import Evidence, caption
from reproduce.report_text import TEXT

_TEMPLATE = Path(__file__).with_suffix(".html")
_TO_ROOT = "../"  # from images/
# Where, the loss with CE1 and CE2 means over the n images of a micro-batch, alpha, n, and what it amounts to.
_FORMS = tables.Table(
    ("where", "loss of a micro-batch of n images", "alpha", "n", "as CE + w KL", "w"),
    [
        ("paper", "mean of [−log P1(y) − log P2(y) + (alpha/2) (KL12 + KL21)]", "0.6", "any", "2 [CE + (alpha/2) KL]",
         "0.3"),
        ("official code", "CE1 + CE2 + alpha · sum of (KL12 + KL21)", "0.3", "512 // 16 = 32", "2 [CE + alpha n KL]",
         "9.6"),
        ("Paddle port", "(CE1 + CE2) / 2 + alpha · sum of (KL12 + KL21) / 2", "0.3", "128 // 16 = 8", "CE + alpha n KL",
         "2.4"),
        ("blog (two networks)", "(CE1 + CE2) / 2 + alpha · sum of (KL12 + KL21) / 2", "0.6", "8", "CE + alpha n KL",
         "4.8"),
        ("this project", "CE1 + CE2 + alpha · kl_sum_over · mean of (KL12 + KL21), or half of that", "`--alpha`", "any",
         "2 [CE + alpha kl_sum_over KL]", "alpha · kl_sum_over"),
    ],
)  # fmt: skip


def page(evidence: Evidence, figures: Path) -> str:
    """The page as text, with the SVG files of the folder `figures`. Raises UserError where one is missing."""
    words = TEXT["en"]
    target_was_run = any(tables.is_target(group) for group in evidence.groups)
    return Template(_TEMPLATE.read_text()).substitute(
        summary=_items(_summary(evidence)),
        published_intro=words["published"],
        published_table=tables.html_table(tables.published_table(evidence.record, evidence.groups, "en"), _TO_ROOT),
        sources=_items(tables.sources("en")),
        context=tables.inline_html(CONTEXT[0], _TO_ROOT),
        audit_table=tables.html_table(tables.audit_table(evidence.record), _TO_ROOT),
        published_figures=_figures(evidence, figures, "published_accuracy", "published_loss"),
        claims_intro=words["claims"],
        claims_table=tables.html_table(tables.claims_table(evidence.record), _TO_ROOT).replace("box", "box wide", 1),
        headline=tables.inline_html(words["headline run" if target_was_run else "headline"], _TO_ROOT),
        runs=_runs(evidence),
        runs_note=tables.inline_html(words["runs"], _TO_ROOT),
        answers=_answers(evidence),
        differences=_nll_differences(evidence),
        run_figures=_figures(evidence, figures, "pair", "strength", "cost", "reliability", "superclasses", "growth"),
        forms_table=tables.html_table(_FORMS, _TO_ROOT),
        weight_figure=_figures(evidence, figures, "kl_weight"),
    )


def _summary(evidence: Evidence) -> list[str]:
    """The figures that most readers come for."""
    several, single = tables.best_published_runs(evidence.record)
    ours = [tables.our_cell(group, TEXT["en"]) for group in evidence.groups if tables.is_target(group)]
    return [
        f"The paper's figure for {TARGET.model} at 384 px: **{TARGET.paper} %**.",
        f"The highest accuracy on all 10,000 test images in the published logs of the Paddle port: "
        f"{several['best_mean_percent']:.2f} % with {several['ranks']} processes, {single['best_mean_percent']:.2f} % "
        "with one (its committed code has dropout off, so no R-Drop). The claimed 93.92 and 93.84 each count 2,500 "
        "images.",
        f"Ours: {'; '.join(ours) or '**not run yet**'}.",
    ]


def _answers(evidence: Evidence) -> str:
    parts = report_answers.answers(evidence.groups, evidence.pairs, "en")
    return "\n".join(tables.html_table(part, _TO_ROOT) if isinstance(part, tables.Table) else _paragraph(part)
                     for part in parts)  # fmt: skip


def _runs(evidence: Evidence) -> str:
    return "\n".join(
        f"{_paragraph(report_runs.recipe_line(groups, 'en'))}\n"
        + tables.html_table(report_runs.recipe_table(groups, evidence.pairs, "en"), _TO_ROOT)
        for groups in report_runs.by_recipe(evidence.groups)
    )


def _nll_differences(evidence: Evidence) -> str:
    words = TEXT["en"]
    if not evidence.pairs:
        return _paragraph(words["no pairs"])
    table = tables.html_table(report_runs.nll_table(evidence.pairs, "en"), _TO_ROOT)
    return f"{_paragraph(words['nll differences'])}\n{table}"


def _paragraph(text: str) -> str:
    return f"<p>{tables.inline_html(text, _TO_ROOT)}</p>"


def _items(lines: list[str]) -> str:
    return "\n".join(f"<li>{tables.inline_html(line, _TO_ROOT)}</li>" for line in lines)


def _figures(evidence: Evidence, folder: Path, *kinds: str) -> str:
    chosen = [drawing for kind in kinds for drawing in evidence.drawings if drawing.kind == kind]
    return "\n".join(
        f'<figure><div class="box">{_svg(folder / f"{drawing.name}.svg", drawing.name, caption(drawing, "en"))}</div>\n'
        f"<figcaption>{tables.inline_html(caption(drawing, 'en'), _TO_ROOT)}</figcaption></figure>"
        for drawing in chosen
    )


def _svg(path: Path, name: str, description: str) -> str:
    """The <svg> element of a file, its ids made the page's own: figures share the names of letters and clips."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise UserError(f"{path}: no such figure; draw it first with python -m reproduce.plot") from None
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(id="|href="#|url\(#)', rf"\1{name}-", text)
    label = html.escape(description.replace("`", ""))
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1).rstrip()
