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


def by_recipe(groups: list[Group]) -> list[list[Group]]:
    """The groups of each recipe, in the order of `groups`."""
    names = dict.fromkeys(group.recipe for group in groups)
    return [[group for group in groups if group.recipe == name] for name in names]


def recipe_line(groups: list[Group], language: str) -> str:
    """What all arms of a recipe have in common, and where they were run."""
    words = TEXT[language]
    group = next((group for group in groups if "num_steps" not in group.changed), groups[0])
    settings, each = group.settings, group.settings["train_per_class"]
    images = words["images a class"].format(each) if each else words["all images"]
    if group.first("test_is") == "test":
        images += words["arm"]["comma"] + words["test images"].format(group.first("test_images"))
    return words["recipe"].format(
        recipe=group.recipe,
        model=" + ".join(filter(None, (settings["model"], settings.get("second_model")))),
        start=words["pretrained"].format(settings["pretrained"]) if settings["pretrained"] else words["scratch"],
        dataset=settings["dataset"], images=images, batch=settings["batch_size"], size=settings["image_size"],
        steps=settings["num_steps"],
        hardware="; ".join(dict.fromkeys(where for group in groups for where in _hardware(group, words))),
    )  # fmt: skip


def recipe_table(groups: list[Group], pairs: list[Pair], language: str) -> Table:
    """The arms of a recipe: means over seeds, and top-1 minus that of what each is compared with."""
    words = TEXT[language]
    shown = _references(pair for pair in pairs if pair.arm in groups)
    before, after = words["recipe header"]
    header = (*before, *(words["minus"].format(words["against"][against]) for against in shown), *after)
    rows = []
    for group in groups:
        accuracy, nll, error = (group.of(name) for name in ("accuracy", "nll", "ece"))
        rows.append((
            group.arm(words["arm"]), _accuracy(group, words),
            *(_differences(group, pairs, against, "accuracy", words) for against in shown),
            _mean(nll, 4), _mean(error, 2, 100), f"[{accuracy.n}](logs/README.md#{_anchor(_heading(group))})",
        ))  # fmt: skip
    return Table(header, rows)


def nll_table(pairs: list[Pair], language: str) -> Table:
    """The same differences in NLL, all recipes in one table."""
    words = TEXT[language]
    shown = _references(pairs)
    arms = list(dict.fromkeys(pair.arm for pair in pairs))
    arms.sort(key=lambda arm: arm.recipe)  # the order of the groups within a recipe stays
    rows = [(f"`{arm.recipe}`", arm.arm(words["arm"]),
             *(_differences(arm, pairs, against, "nll", words) for against in shown)) for arm in arms]  # fmt: skip
    return Table((*words["differences header"], *(words["against"][against] for against in shown)), rows)


def _references(pairs) -> list[str]:
    """Those of AGAINST that occur."""
    found = {pair.against for pair in pairs}
    return [against for against in AGAINST if against in found]


def _differences(arm: Group, pairs: list[Pair], against: str, column: str, words: dict) -> str:
    own = [pair for pair in pairs if pair.arm is arm and pair.against == against]
    return "; ".join(_difference(pair, column, words) for pair in own)


def _difference(pair: Pair, column: str, words: dict) -> str:
    found = pair.difference(column)
    digits, scale = _UNITS[column]
    text = _mean(found, digits, scale, "+")
    bold = f"**{text}**" if reading(found) in ("above", "below") else text
    return bold if found.n == len(pair.arm.runs) else f"{bold}{words['arm']['comma']}n = {found.n}"


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


def answers_table(pairs: list[Pair], language: str) -> Table:
    """How R-Drop compares, a line for each recipe and kind of reference, over all strengths with two seeds or more."""
    words = TEXT[language]
    rows = []
    for recipe in sorted({pair.arm.recipe for pair in pairs}):
        own = [pair for pair in pairs if pair.arm.recipe == recipe and pair.arm.is_rdrop and len(pair.seeds) > 1]
        for against in _references(own):
            same = [pair for pair in own if pair.against == against]
            seeds = max(len(pair.seeds) for pair in same)
            rows.append((f"`{recipe}`", str(seeds), words["against"][against], str(len(same)),
                         *_verdict(same, "accuracy", words), *_verdict(same, "nll", words)))  # fmt: skip
    return Table(words["answer header"], rows)


def _verdict(pairs: list[Pair], column: str, words: dict) -> tuple[str, str]:
    """At how many strengths it is better and worse in "accuracy" or "nll", and the range of the mean differences."""
    found = [pair.difference(column) for pair in pairs]
    digits, scale = _UNITS[column]
    better, worse = ("above", "below") if column == "accuracy" else ("below", "above")
    counts = " / ".join(str(sum(reading(each) == side for each in found)) for side in (better, worse))
    ends = [f"{scale * mean:+.{digits}f}" for mean in (f([each.mean for each in found]) for f in (min, max))]
    return counts, ends[0] if len(found) == 1 else words["from to"].format(*ends)


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


def _hardware(group: Group, words: dict) -> list[str]:
    found = []
    for _, run in group.runs.iterrows():
        where = run["gpu"] or _processor(run, words)
        processes = [words["processes"].format(run["processes"])] if run["processes"] > 1 else []
        found.append(words["arm"]["comma"].join((where, *processes, run["precision"])))
    return list(dict.fromkeys(found))


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


def raw_sections(runs, groups: list[Group]) -> str:
    """Every run by itself with the command that repeats it, the seeds of an arm under one heading."""
    words = TEXT["en"]
    parts = []
    for group in groups:
        accuracy = group.of("accuracy")
        mean = words["raw mean"].format(_accuracy(group, words), 100 * accuracy.low, 100 * accuracy.high, accuracy.n)
        names = [*group.runs["name"], *group.repeated]
        rows = [_raw_row(run, run["name"] in group.repeated, words)
                for _, run in runs.set_index("name", drop=False).loc[names].iterrows()]  # fmt: skip
        parts += [f"### {_heading(group)}", mean, markdown(Table(words["raw header"], rows))]
    return "\n\n".join(parts)


def _raw_row(run, repeated: bool, words: dict) -> tuple[str, ...]:
    result = words["raw cell"].format(100 * run["accuracy"], 100 * run["accuracy_last"], run["test_images"])
    seed = f"{run['seed']}{words['repeated'] if repeated else ''}"
    return seed, f"[{run['name']}]({run['name']})", result, f"{run['seconds']:,.0f} s", f"`{_command(run)}`"


def _heading(group: Group) -> str:
    """The heading of a group in logs/README.md."""
    return f"{group.recipe}: {group.arm()}"


def _anchor(heading: str) -> str:
    """What a heading is called in a link, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def _command(run) -> str:
    """The command of a run as a user would give it."""
    found = re.search(r"-m (?:reproduce\.launch )?reproduce\.train ?(.*)", run["command"])
    usual = max(1, run["cores"] // run["processes"])
    threads = f"OMP_NUM_THREADS={run['threads']} " if run["threads"] != usual else ""
    return f"{threads}bash run_train.sh {found[1]}" if found else run["command"]
