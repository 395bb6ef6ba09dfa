"""What the step was to reach, and what `reproduce.bench` measured: reached or not, all in one table."""

from reproduce.report_tables import Table, markdown
from reproduce.report_targets_text import TARGETS_TEXT

_SEED_LIKE, _ONE_VIEW, _INPUT = 4, 1.95, 20  # times as fast; times the seconds; times the images a second


def targets(records: dict[str, dict], language: str) -> list[str]:
    """A sentence, the table, and what stands in the way of the targets that are missed; nothing without records."""
    words = TARGETS_TEXT[language]
    rows = [row for record in records.values() for row in _rows(record, words)]
    if not rows:
        return []
    missed = {kind for kind, _, _, reached in rows if not reached}
    table = Table(
        words["header"], [(what, value, words["yes" if reached else "no"]) for _, what, value, reached in rows]
    )
    reasons = [f"- {words['reasons'][kind]}" for kind in words["reasons"] if kind in missed]
    return [words["intro"], markdown(table), *(["\n".join(reasons)] if reasons else [])]


def _rows(record: dict, words: dict):
    """(kind, target, figure, reached) of every target that the record can tell of; reached is judged by the median."""
    found = record["competitors"]
    ratios = {name: other["ratio_to_ours"] for name, other in found.items()}
    if record["part"].startswith("step"):
        name = f"{record['model']}, {record['image_size']} px"
        if "pytorch" in found:
            ours = _inverse(ratios["pytorch"])
            yield "pytorch", words["pytorch"].format(name), _times(ours), ours["median"] <= 1
        if "seed_like" in found:
            theirs = ratios["seed_like"]
            reached = theirs["median"] >= _SEED_LIKE
            yield "seed_like", words["seed_like"].format(name, _SEED_LIKE), _times(theirs), reached
        if "ours_baseline" in found:
            ours = _inverse(ratios["ours_baseline"])
            yield "one view", words["one view"].format(name, _ONE_VIEW), _times(ours), ours["median"] <= _ONE_VIEW
        others = [found[other]["memory_peak_bytes"] for other in ("pytorch", "seed_like") if other in found]
        if others:
            ours, least = found["ours"]["memory_peak_bytes"], min(others)
            yield "memory", words["memory"].format(name), f"{ours / 1e9:.2f}, {least / 1e9:.2f} GB", ours < least
    if record["part"] == "input" and "paddle_vision" in found:
        theirs = ratios["paddle_vision"]
        yield "input", words["input"].format(_INPUT), _times(theirs), theirs["median"] >= _INPUT


def _inverse(ratio: dict) -> dict:
    """Our time by theirs, of their time by ours."""
    return {"median": 1 / ratio["median"], "lowest": 1 / ratio["highest"], "highest": 1 / ratio["lowest"]}


def _times(ratio: dict) -> str:
    return f"{ratio['median']:.2f} x ({ratio['lowest']:.2f} – {ratio['highest']:.2f})"
