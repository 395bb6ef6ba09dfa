"""Published accuracies of ViT-B/16 + R-Drop on CIFAR-100 in PaddlePaddle, and whether audited logs support them."""

from dataclasses import dataclass

from reproduce.log_audit import Audit


@dataclass(frozen=True)
class Claim:
    """A published accuracy on the whole test set."""

    percent: float
    what: str
    source: str
    moment: str = "best"  # "best" of a run, or at its "end"
    test_images: int = 10_000


_README = "README of github.com/zbp-xxxp/R-Drop-Paddle"
_PROJECT = "aistudio.baidu.com/aistudio/projectdetail/2294463, which that README names"
CLAIMS = (
    Claim(93.92, "best accuracy in the training job", _README),
    Claim(93.44, "accuracy of the saved weights on one card", _README),  # weights are saved at an evaluation
    Claim(93.84, "best accuracy in the training job", _PROJECT),
    Claim(93.48, "accuracy of the saved weights on one card", _PROJECT),
    Claim(93.29, "the paper's accuracy (arXiv 2106.14448), reached at the end of training", _README, moment="end"),
)


@dataclass(frozen=True)
class Verdict:
    claim: Claim
    supported: str  # "yes", "no" or "cannot tell"
    why: str  # one sentence


def verdicts(audits: list[Audit], claims=CLAIMS) -> list[Verdict]:
    """Whether the audited runs support each claim: an accuracy that high, at that moment, on the whole test set.

    "yes" means that some run reaches the figure; whether the claim was made about that run is for the reader to see.
    """
    return [_verdict(claim, audits) for claim in claims]


def _verdict(claim: Claim, audits: list[Audit]) -> Verdict:
    whole = [run for run in audits if run.test_images == claim.test_images]
    images = f"all {claim.test_images:,} test images"
    if not whole:
        return Verdict(claim, "cannot tell", f"No accuracy in these logs is known to count {images}.")
    best = max(whole, key=lambda run: run.best_mean_percent)
    last = max(whole, key=lambda run: run.last_mean_percent)
    highest = (f"{best.best_mean_percent:.2f}, at step {best.best_mean_step:,} of {best.name}, the best of "
               f"{best.evaluations} evaluations on the test set itself")  # fmt: skip
    ended = f"{last.last_mean_percent:.2f}, at step {last.last_mean_step:,} of {last.name}"
    reached = last.last_mean_percent if claim.moment == "end" else best.best_mean_percent
    if round(reached, 2) >= claim.percent:
        return Verdict(claim, "yes", f"On {images} there is {ended if claim.moment == 'end' else highest}.")
    if claim.moment == "end":
        why = f"On {images} the highest last value is {ended}; the highest on the way is {highest}"
    else:
        why = f"On {images} the highest is {highest}"
    parts = [_part(run) for run in whole if run.ranks > 1 and round(run.best_value_percent, 2) == claim.percent]
    return Verdict(claim, "no", "; ".join([why, *parts]) + ".")


def _part(run: Audit) -> str:
    """Where the best value of a single rank comes from."""
    text = (f"{run.best_value_percent:.2f} is what 1 of {run.ranks} ranks counted on its {run.images_per_value:,} "
            f"images at step {run.best_value_step:,} ({run.best_value_label})")  # fmt: skip
    for mean in run.accuracy.means[run.accuracy.steps == run.best_value_step]:
        text += f", where the mean over the ranks is {100 * mean:.2f}"
    if run.best_value_offset_points is not None:
        text += f"; on average its images give {run.best_value_offset_points:+.2f} points against that mean"
    return text
