"""Whether R-Drop helps, as the runs in logs/ say: in a sentence, in a table, and what else they show."""

from reproduce.report_runs import by_recipe, differences_cell, reading, references
from reproduce.report_tables import Table
from reproduce.report_text import TEXT
from reproduce.results import Group, Pair
from reproduce.run_log import read_metrics

_PAPERS_STRENGTH = 0.3  # alpha / 2 of its text, against the mean cross-entropy


def answers(groups: list[Group], pairs: list[Pair], language: str) -> list[str | Table]:
    """Paragraphs and a table; [] where no R-Drop stands beside something that it can be compared with."""
    words = TEXT[language]
    compared = [pair for pair in pairs if pair.arm.is_rdrop and len(pair.seeds) > 1]
    if not compared:
        return []
    return [
        _short_answer(compared, words),
        _papers_strength(compared, words),
        *_second_view(compared, words),
        *_shared_blocks(pairs, words),
        *_clipping(groups, words),
        words["scope"],
    ]


def _short_answer(pairs: list[Pair], words: dict) -> str:
    """R-Drop against each kind of reference, all strengths of all recipes together."""
    parts = []
    for against in references(pairs):  # never "whole": those share blocks
        found = [[reading(pair.difference(column)) for pair in pairs if pair.against == against]
                 for column in ("accuracy", "accuracy_last")]  # fmt: skip
        counts = [each.count(side) for each in found for side in ("above", "below")]
        parts.append(words["short answer part"].format(*counts, n=len(found[0]), against=words["against"][against]))
    return words["short answer"].format(words["short answer joint"].join(parts))


def _papers_strength(pairs: list[Pair], words: dict) -> Table:
    """The differences at the strength of the paper's text, a line for each recipe."""
    pairs = [pair for pair in pairs if abs(pair.arm.strength - _PAPERS_STRENGTH) < 1e-9]
    shown = references(pairs)
    header = [words["answer header"][column].format(words["against"][against])
              for column in ("accuracy", "nll") for against in shown]  # fmt: skip
    arms = sorted(dict.fromkeys(pair.arm for pair in pairs), key=lambda arm: arm.recipe)
    rows = [(f"`{arm.recipe}`", str(len(arm.runs)), *(differences_cell(arm, pairs, against, column, words)
             for column in ("accuracy", "nll") for against in shown)) for arm in arms]  # fmt: skip
    return Table((*words["answer header"]["first"], *header), rows)


def _second_view(pairs: list[Pair], words: dict) -> list[str]:
    """That the KL added nothing to the second view, where there was a gain and no strength shows otherwise."""
    above = {against: any(reading(pair.difference("accuracy")) == "above" for pair in pairs if pair.against == against)
             for against in references(pairs)}  # fmt: skip
    gained = above.get("steps") or above.get("compute")
    return [words["second view finding"]] if gained and above.get("no KL") is False else []


def _shared_blocks(pairs: list[Pair], words: dict) -> list[str]:
    """The gain over the baseline of as many steps that is left when views share blocks, by R-Drop that shares none."""
    gains = {pair.arm: f"{100 * pair.difference('accuracy').mean:+.2f}" for pair in pairs if pair.against == "steps"}
    families: dict[Group, list[Group]] = {}
    for pair in pairs:
        if pair.against == "whole" and pair.arm in gains and pair.reference in gains:
            families.setdefault(pair.reference, []).append(pair.arm)
    return [
        words["shared finding"].format(
            recipe=whole.recipe, whole=gains[whole],
            blocks=words["and"].join(str(arm.blocks_shared) for arm in arms),
            kept=words["and"].join(gains[arm] for arm in arms),
        )
        for whole, arms in families.items()
    ]  # fmt: skip


def _clipping(groups: list[Group], words: dict) -> list[str]:
    """That every update was clipped, for recipes whose records show it: then a stronger KL makes none larger."""
    found = []
    for own in by_recipe(groups):
        limit = own[0].settings["max_grad_norm"]
        norms = {group: _gradient_norms(group) for group in own}
        if len(own) < 2 or not limit or not all(norms.values()) or min(map(min, norms.values())) <= limit:
            continue
        means = {group: sum(values) / len(values) for group, values in norms.items()}
        smallest, largest = (choose(means, key=means.get) for choose in (min, max))
        found.append(words["clipping finding"].format(
            recipe=own[0].recipe, limit=limit, least=min(map(min, norms.values())),
            smallest=smallest.arm(words["arm"]), small=means[smallest],
            largest=largest.arm(words["arm"]), large=means[largest],
        ))  # fmt: skip
    return found


def _gradient_norms(group: Group) -> list[float]:
    """Those of all records of its runs; [] where one has none."""
    runs = [[row["train/gradient_norm"] for row in read_metrics(path) if "train/gradient_norm" in row]
            for path in group.runs["path"]]  # fmt: skip
    return [norm for norms in runs for norm in norms] if all(runs) else []
