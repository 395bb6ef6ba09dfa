"""The tables of the runs in logs/: the arms of a recipe with their differences, and every run by itself."""

import re

from reproduce.report_tables import Table, accuracy_cell, markdown, mean_cell
from reproduce.report_text import TEXT
from reproduce.results import AGAINST, Group, Pair, Summary

_UNITS = {"accuracy": (2, 100), "nll": (4, 1)}  # decimals and factor of a difference: points, nats


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
    shown = references(pair for pair in pairs if pair.arm in groups)
    before, after = words["recipe header"]
    header = (*before, *(words["minus"].format(words["against"][against]) for against in shown), *after)
    rows = []
    for group in groups:
        last, nll, error = (group.of(name) for name in ("accuracy_last", "nll", "ece"))
        rows.append((
            group.arm(words["arm"]), accuracy_cell(group, words),
            *(differences_cell(group, pairs, against, "accuracy", words) for against in shown),
            mean_cell(last, 2, 100), mean_cell(nll, 4), mean_cell(error, 2, 100),
            f"[{last.n}](logs/README.md#{_anchor(_heading(group))})",
        ))  # fmt: skip
    return Table(header, rows)


def nll_table(pairs: list[Pair], language: str) -> Table:
    """The same differences in NLL, all recipes in one table."""
    words = TEXT[language]
    shown = references(pairs)
    arms = list(dict.fromkeys(pair.arm for pair in pairs))
    arms.sort(key=lambda arm: arm.recipe)  # the order of the groups within a recipe stays
    rows = [(f"`{arm.recipe}`", arm.arm(words["arm"]),
             *(differences_cell(arm, pairs, against, "nll", words) for against in shown)) for arm in arms]  # fmt: skip
    return Table((*words["differences header"], *(words["against"][against] for against in shown)), rows)


def references(pairs) -> list[str]:
    """Those of AGAINST that occur."""
    found = {pair.against for pair in pairs}
    return [against for against in AGAINST if against in found]


def differences_cell(arm: Group, pairs: list[Pair], against: str, column: str, words: dict) -> str:
    """The mean differences in `column` of an arm and what it is compared with, bold where they are not chance."""
    own = [pair for pair in pairs if pair.arm is arm and pair.against == against]
    return "; ".join(_difference(pair, column, words) for pair in own)


def _difference(pair: Pair, column: str, words: dict) -> str:
    found = pair.difference(column)
    digits, scale = _UNITS[column]
    text = mean_cell(found, digits, scale, "+")
    bold = f"**{text}**" if reading(found) in ("above", "below") else text
    return bold if found.n == len(pair.arm.runs) else f"{bold}{words['arm']['comma']}n = {found.n}"


def reading(difference: Summary) -> str:
    """Where the interval of a mean difference lies: "above" or "below" 0, or it "holds 0"; "one" has no interval."""
    if difference.n < 2:
        return "one"
    if abs(difference.mean) <= difference.half_width:
        return "holds 0"
    return "above" if difference.mean > 0 else "below"


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


# ---- logs/README.md


def raw_sections(runs, groups: list[Group]) -> str:
    """Every run by itself with the command that repeats it, the seeds of an arm under one heading."""
    words = TEXT["en"]
    parts = []
    for group in groups:
        accuracy = group.of("accuracy")
        mean = accuracy_cell(group, words)
        if accuracy.n > 1:
            mean += words["raw range"].format(100 * accuracy.low, 100 * accuracy.high, accuracy.n)
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
    processes = f"NPROC={run['processes']} " if run["processes"] > 1 else ""
    return f"{threads}{processes}bash run_train.sh {found[1]}" if found else run["command"]
