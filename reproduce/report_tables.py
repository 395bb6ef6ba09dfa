"""The result tables, made from logs/ and literature.py, in either language and as Markdown or HTML.

Cells are Markdown with links from the project's root; `html_table` knows the little of it that they use.
"""

import html
import re
from dataclasses import dataclass

from reproduce.literature import ROWS, SOURCES, TARGET, Row
from reproduce.published_record import PublishedRecord
from reproduce.report_text import TEXT
from reproduce.results import AGAINST, Group, Pair, Summary

_UNITS = {"accuracy": (2, 100), "nll": (4, 1)}  # decimals and factor of a difference: points, nats


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
    return f"{_accuracy(group, words)}, {group.arm(words['arm'])}, n = {len(group.runs)}"


def best_published_runs(record: PublishedRecord) -> tuple[dict, dict]:
    """The published runs with the highest accuracy on the whole test set: of several processes, and of one."""
    whole = [run for run in record.runs if run["test_images"] == 10_000]
    return tuple(max((run for run in whole if (run["ranks"] > 1) == several), key=lambda run: run["best_mean_percent"])
                 for several in (True, False))  # fmt: skip


def _audit_cell(record: PublishedRecord, words: dict) -> str:
    several, single = best_published_runs(record)
    return words["audit cell"].format(
        ranks=several["ranks"], best_mean=several["best_mean_percent"], last_mean=several["last_mean_percent"],
        single=single["best_mean_percent"], single_last=single["last_mean_percent"],
    )  # fmt: skip


# ---- what was run here


def runs_table(groups: list[Group], language: str) -> Table:
    """Every group: mean and interval over its seeds, and where the logs are."""
    words = TEXT[language]
    rows = []
    for group in groups:
        accuracy, nll, error = (group.of(name) for name in ("accuracy", "nll", "ece"))
        runs = zip(group.runs["seed"], group.runs["name"], strict=True)
        rows.append((
            f"`{group.recipe}`", group.arm(words["arm"]), _accuracy(group, words),
            f"{100 * accuracy.low:.2f} – {100 * accuracy.high:.2f}" if accuracy.n > 1 else "",
            _mean(nll, 4), _mean(error, 2, 100), str(accuracy.n),
            ", ".join(f"[{seed}](logs/{name})" for seed, name in runs),
            f"{group.settings['num_steps']:,}", str(group.settings["image_size"]), _hardware(group, words),
        ))  # fmt: skip
    return Table(words["runs header"], rows)


def recipe_lines(groups: list[Group], language: str) -> list[str]:
    """What stands behind the recipe names of the groups, a line each."""
    words = TEXT[language]
    lines = {}
    for group in groups:
        settings, each = group.settings, group.settings["train_per_class"]
        networks = " + ".join(filter(None, (settings["model"], settings.get("second_model"))))
        start = words["pretrained"].format(settings["pretrained"]) if settings["pretrained"] else words["scratch"]
        images = words["images a class"].format(each) if each else words["all images"]
        if group.first("test_is") == "test":
            images += words["arm"]["comma"] + words["test images"].format(group.first("test_images"))
        line = words["recipe"].format(recipe=group.recipe, model=networks, start=start, dataset=settings["dataset"],
                                      images=images, batch=settings["batch_size"])  # fmt: skip
        lines.setdefault(group.recipe, line)
    return list(lines.values())


def differences_table(pairs: list[Pair], column: str, language: str) -> Table:
    """Every arm with two views minus what it is compared with, in `column`: "accuracy" (in points) or "nll"."""
    words = TEXT[language]
    shown = [against for against in AGAINST if any(pair.against == against for pair in pairs)]
    arms = list(dict.fromkeys(pair.arm for pair in pairs))
    arms.sort(key=lambda arm: arm.recipe)  # the order of the groups within a recipe stays
    rows = []
    for arm in arms:
        own = [pair for pair in pairs if pair.arm is arm]
        cells = [
            "; ".join(_difference(pair, column, words) for pair in own if pair.against == against) for against in shown
        ]
        rows.append((f"`{arm.recipe}`", arm.arm(words["arm"]), *cells))
    return Table((*words["differences header"], *(words["against"][against] for against in shown)), rows)


def _difference(pair: Pair, column: str, words: dict) -> str:
    found = pair.difference(column)
    digits, scale = _UNITS[column]
    text = _mean(found, digits, scale, "+")
    bold = f"**{text}**" if reading(found) in ("above", "below") else text
    return f"{bold}{words['arm']['comma']}n = {found.n}"


def reading(difference: Summary) -> str:
    """Where the interval of a mean difference lies: "above" or "below" 0, or it "holds 0"; "one" has no interval."""
    if difference.n < 2:
        return "one"
    if abs(difference.mean) <= difference.half_width:
        return "holds 0"
    return "above" if difference.mean > 0 else "below"


def short_answer(pairs: list[Pair], language: str) -> list[str]:
    """R-Drop against baselines of as much compute, all strengths of all recipes together; [] without any."""
    found = [reading(pair.difference("accuracy")) for pair in pairs
             if pair.against == "compute" and pair.arm.is_rdrop and len(pair.seeds) > 1]  # fmt: skip
    words = TEXT[language]["short answer"]
    return [words.format(n=len(found), better=found.count("above"), worse=found.count("below"))] if found else []


def answers(pairs: list[Pair], language: str) -> list[str]:
    """Whether R-Drop helps: a sentence for each recipe with at least two seeds, from all strengths that were run."""
    words = TEXT[language]
    found = []
    for recipe in sorted({pair.arm.recipe for pair in pairs}):
        own = [pair for pair in pairs if pair.arm.recipe == recipe and pair.arm.is_rdrop and len(pair.seeds) > 1]
        parts = [
            words["answer part"].format(against=words["against"][against],
                                        accuracy=_verdict(same, "accuracy", words), nll=_verdict(same, "nll", words))
            for against in AGAINST if (same := [pair for pair in own if pair.against == against])
        ]  # fmt: skip
        if parts:
            found.append(words["answer"].format(recipe=recipe, n=max(len(pair.seeds) for pair in own),
                                                parts=words["answer joint"].join(parts)))  # fmt: skip
    return found


def _verdict(pairs: list[Pair], column: str, words: dict) -> str:
    """What the differences of several strengths in "accuracy" or "nll" say together."""
    found = [pair.difference(column) for pair in pairs]
    digits, scale = _UNITS[column]
    means = [f"{scale * mean:+.{digits}f}" for mean in sorted(difference.mean for difference in found)]
    sides = {"above": "better", "below": "worse"} if column == "accuracy" else {"below": "better", "above": "worse"}
    count = {word: sum(reading(difference) == side for difference in found) for side, word in sides.items()}
    parts = [words["verdict"][word].format(number, len(found)) for word, number in count.items() if number]
    spread = means[0] if len(means) == 1 else words["from to"].format(means[0], means[-1])
    return words["verdict of"].format(words["and"].join(parts) or words["verdict"]["neither"], spread)


def _accuracy(group: Group, words: dict) -> str:
    """Test accuracy in %, and what a reader has to know about it."""
    notes = []
    if "test" in set(group.runs["selected_on"]):
        notes.append(words["test set"])
    if group.first("test_is") != "test":
        notes.append(words["not test"][group.first("test_is")])
    if group.runs["dirty"].fillna(True).any():
        notes.append(words["dirty"])
    comma = words["arm"]["comma"]
    return _mean(group.of("accuracy"), 2, 100) + (f" ({comma.join(notes)})" if notes else "")


def _mean(found: Summary, digits: int, scale: float = 1, sign: str = "") -> str:
    mean = f"{scale * found.mean:{sign}.{digits}f}"
    return mean if found.n == 1 else f"{mean} ± {scale * found.half_width:.{digits}f}"


def _processor(run, words: dict) -> str:
    threads = run["threads"] * run["processes"]
    return words["thread" if threads == 1 else "threads"].format(threads, run["processor"])


def _hardware(group: Group, words: dict) -> str:
    found = []
    for _, run in group.runs.iterrows():
        where = run["gpu"] or _processor(run, words)
        processes = [words["processes"].format(run["processes"])] if run["processes"] > 1 else []
        found.append(words["arm"]["comma"].join((where, *processes, run["precision"])))
    return "; ".join(dict.fromkeys(found))


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


# ---- logs/README.md


def raw_table(runs) -> Table:
    """Every run by itself with the command that repeats it."""
    words = TEXT["en"]
    rows = []
    for _, run in runs.iterrows():
        result = words["raw cell"].format(100 * run["accuracy"], 100 * run["accuracy_last"], run["test_images"])
        rows.append((f"[{run['name']}]({run['name']})", result, f"{run['seconds']:,.0f} s", f"`{_command(run)}`"))
    return Table(words["raw header"], rows)


def _command(run) -> str:
    """The command of a run as a user would give it."""
    found = re.search(r"-m (?:reproduce\.launch )?reproduce\.train ?(.*)", run["command"])
    usual = max(1, run["cores"] // run["processes"])
    threads = f"OMP_NUM_THREADS={run['threads']} " if run["threads"] != usual else ""
    return f"{threads}bash run_train.sh {found[1]}" if found else run["command"]
