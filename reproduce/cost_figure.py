"""What R-Drop is worth for its cost: accuracy against the time of training, also for views that share blocks."""

import matplotlib.pyplot as plt

from reproduce.figure_style import BLACK, BLUE, GREEN, GREY, ORANGE
from reproduce.results import Group

_NUDGE = 0.012  # of the axis: arms of equal cost stand side by side


def arms_of_cost(groups: list[Group], recipe: str) -> list[Group]:
    """The groups of `recipe` that the figure shows, or [] where no arm shares blocks."""
    own = [group for group in groups if group.recipe == recipe]
    strengths = {group.strength for group in own if group.blocks_shared}
    return [group for group in own if group.one_view or group.strength in {0, *strengths}] if strengths else []


def training_minutes(groups: list[Group], step: dict) -> dict[Group, float]:
    """Minutes of training by group: updates times the seconds of one update in `step`, a record of bench.py.

    Groups of another network, size or batch than the record's, and those that it did not measure, are left out.
    """
    found = {}
    for group in groups:
        settings, name = group.settings, _competitor(group)
        same = all(settings[key] == step.get(key) for key in ("model", "image_size", "batch_size"))
        if same and name in step["competitors"]:
            found[group] = settings["num_steps"] * step["competitors"][name]["median"] / 60
    return found


def _competitor(group: Group) -> str:
    """What bench.py calls the update of `group`."""
    if group.one_view:
        return "ours_baseline"
    return f"ours_split_{group.blocks_shared}" if group.blocks_shared else "ours"


def draw_cost(minutes: dict[Group, float]):
    """Every seed a dot, the mean of an arm a mark with its 95 % interval, from three seeds on; lines join its family.

    `minutes` has baselines, two views without KL, R-Drop, and arms of its strength whose views share blocks.
    """
    figure, axes = plt.subplots(figsize=(10, 6))
    families = {
        "plain cross-entropy": (BLUE, "s", [group for group in minutes if group.one_view]),
        "two views without KL": (GREY, "^", [group for group in minutes if not group.one_view and not group.strength]),
        "R-Drop": (ORANGE, "D", [group for group in minutes if group.is_rdrop]),
        "the views share their first blocks: not the paper's R-Drop": (
            GREEN, "o", [group for group in minutes if group.blocks_shared],
        ),
    }  # fmt: skip
    width = max(minutes.values()) - min(minutes.values())
    for place, (name, (colour, mark, members)) in enumerate(families.items()):
        members = sorted(members, key=minutes.get)
        at = [minutes[group] + (place - 1.5) * _NUDGE * width for group in members]
        means = [100 * group.of("accuracy").mean for group in members]
        axes.plot(at, means, color=colour, lw=1, alpha=0.5, ls="--")
        axes.plot([], [], mark, color=colour, ls="--", lw=1, label=name)
        for group, x, mean in zip(members, at, means, strict=True):
            found = group.of("accuracy")
            axes.plot([x] * found.n, 100 * group.runs["accuracy"], ".", color=colour, alpha=0.4, ms=7)
            half = 100 * found.half_width if found.n > 2 else 0
            axes.errorbar(x, mean, half, fmt=mark, color=colour, mec=BLACK, capsize=4, ms=8)
            text = f"{group.blocks_shared} shared" if group.blocks_shared else ""
            axes.annotate(text, (x, mean), (9, -4), textcoords="offset points", fontsize=10, color=colour)
    seeds = [len(group.runs) for group in minutes]
    several = f"{min(seeds)} to {max(seeds)}" if min(seeds) < max(seeds) else f"{seeds[0]}"
    axes.set_title(f"{next(iter(minutes)).recipe}: what two views are worth for their cost, {several} seeds an arm")
    axes.set(xlabel="minutes of training: updates x measured time of an update", ylabel="test top-1 accuracy, %")
    axes.legend(loc="best")
    return figure
