"""Tables as Markdown or HTML, and those of what was published, made from logs/published and literature.py.

Cells are Markdown with links from the project's root; `html_table` knows the little of it that they use.
"""

import html
import re
from dataclasses import dataclass

from reproduce.literature import ROWS, SOURCES, TARGET, Row
from reproduce.published_record import PublishedRecord
from reproduce.report_text import TEXT
from reproduce.results import Group, Summary


@dataclass(frozen=True)
class Table:
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]


def markdown(table: Table) -> str:
    lines = [table.header, ("---",) * len(table.header), *table.rows]
    return "\n".join(f"| {' | '.join(cell or '-' for cell in line)} |" for line in lines)


def html_table(table: Table, root: str) -> str:
    """The table in a box that scrolls; `root` is the way from the page to the project's root."""

    def line(cells, tag):
        return "<tr>" + "".join(f"<{tag}>{inline_html(cell or '-', root)}</{tag}>" for cell in cells) + "</tr>"

    body = "\n".join(line(row, "td") for row in table.rows)
    return f'<div class="box"><table>\n<thead>{line(table.header, "th")}</thead>\n<tbody>{body}</tbody>\n</table></div>'


def inline_html(text: str, root: str) -> str:
    """`code`, **bold** and [links](to) of one line of Markdown as HTML."""
    text = html.escape(text, quote=False)
    text = re.sub(r"`([^`]*)`", r"<code>\1</code>", text)
    text = re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)

    def link(found):
        label, to = found.groups()
        return f'<a href="{to if "://" in to else root + to}">{label}</a>'

    return re.sub(r"\[([^\]]*)\]\(([^)]*)\)", link, text)


# ---- cells


def accuracy_cell(group: Group, words: dict) -> str:
    """Test accuracy in %, and what a reader has to know about it."""
    notes = []
    if "test" in set(group.runs["selected_on"]):
        notes.append(words["test set"])
    if group.first("test_is") != "test":
        notes.append(words["not test"][group.first("test_is")])
    if group.runs["dirty"].fillna(True).any():
        notes.append(words["dirty"])
    comma = words["arm"]["comma"]
    return mean_cell(group.of("accuracy"), 2, 100) + (f" ({comma.join(notes)})" if notes else "")


def mean_cell(found: Summary, digits: int, scale: float = 1, sign: str = "") -> str:
    mean = f"{scale * found.mean:{sign}.{digits}f}"
    return mean if found.n == 1 else f"{mean} ± {scale * found.half_width:.{digits}f}"


# ---- what was published


def published_table(record: PublishedRecord, groups: list[Group], language: str) -> Table:
    """Paper, official code, port as claimed and as audited, others, and ours."""
    words = TEXT[language]
    mark = {name: f"[{number}]" for number, name in enumerate(SOURCES, 1)}
    heads = [mark["paper"], mark["official"], mark["claimed"], mark["audited"]]
    header = [name.format(heads.pop(0)) if "{}" in name else name for name in words["published header"]]
    rows = []
    for row in ROWS:
        others = "; ".join(f"{figures} {mark[source]}" for figures, source in row.others)
        audited = _audit_cell(record, words) if row.audited else ""
        bold = "**{}**" if row is TARGET else "{}"
        ours = "; ".join(our_cell(group, words) for group in groups if _stands_in(group, row))
        paper, missing = row.paper and bold.format(row.paper), bold.format(words["not run"])
        rows.append((bold.format(row.model), row.about[words["index"]], paper, words["no figure"], row.claimed,
                     audited, others, ours or missing))  # fmt: skip
    return Table(tuple(header), rows)


def sources(language: str) -> list[str]:
    """The numbered notes of the table."""
    return [f"[{number}] {pair[TEXT[language]['index']]}" for number, pair in enumerate(SOURCES.values(), 1)]


def _stands_in(group: Group, row: Row) -> bool:
    return all(group.settings.get(name) == value for name, value in row.ours.items())


def is_target(group: Group) -> bool:
    """Whether the group is a run of what this project is to reproduce."""
    return _stands_in(group, TARGET)


def our_cell(group: Group, words: dict) -> str:
    return f"{accuracy_cell(group, words)}, {group.arm(words['arm'])}, n = {len(group.runs)}"


def best_published_runs(record: PublishedRecord) -> tuple[dict, dict]:
    """The published runs with the highest accuracy on the whole test set: of several processes, and of one."""
    whole = [run for run in record.runs if run["test_images"] == 10_000]
    return tuple(max((run for run in whole if (run["ranks"] > 1) == several), key=lambda run: run["best_mean_percent"])
                 for several in (True, False))  # fmt: skip


def _audit_cell(record: PublishedRecord, words: dict) -> str:
    """Every run of several processes, and the best of one."""
    _, single = best_published_runs(record)
    several = [run for run in record.runs if run["test_images"] == 10_000 and run["ranks"] > 1]
    cells = [words["audit cell"]["several"].format(**run) for run in several]
    return "; ".join([*cells, words["audit cell"]["single"].format(**single)])


# ---- the audit


def claims_table(record: PublishedRecord, language: str = "en") -> Table:
    """Each published claim, whether the logs support it, and why."""
    words = TEXT[language]
    rows = [(f"{verdict['percent']:.2f}, {verdict['what']} ({verdict['source']})",
             words["supported"][verdict["supported"]], verdict["why"]) for verdict in record.verdicts]  # fmt: skip
    return Table(words["claims header"], rows)


def audit_table(record: PublishedRecord) -> Table:
    """What was counted in each published run."""
    header = ("run of", "processes", "updates", "hours", "images a value", "highest value",
              "highest mean over processes", "last mean", "epochs")  # fmt: skip
    rows = [
        (run["started"][:10], str(run["ranks"]), f"{run['updates']:,}", f"{run['wall_hours']:.1f}",
         f"{run['images_per_value']:,}", f"{run['best_value_percent']:.2f} at {run['best_value_step']:,}",
         f"{run['best_mean_percent']:.2f} at {run['best_mean_step']:,}",
         f"{run['last_mean_percent']:.2f} at {run['last_mean_step']:,}", f"{run['epochs']:.0f}")
        for run in record.runs
    ]  # fmt: skip
    return Table(header, rows)


def claims_line(record: PublishedRecord, language: str) -> str:
    """The verdicts in one sentence."""
    words = TEXT[language]
    figures = {supported: [] for supported in ("yes", "no", "cannot tell")}
    for verdict in record.verdicts:
        at_end = words["at the end"] if verdict["moment"] == "end" else ""
        figures[verdict["supported"]].append(f"{verdict['percent']:.2f}{at_end}")
    joined = {name: words["and"].join(found) or words["none"] for name, found in figures.items()}
    return words["claims short"].format(**joined)
