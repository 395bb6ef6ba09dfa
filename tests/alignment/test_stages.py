"""Training here is training by the official algorithm, number by number, with dropout switched on."""

import csv

import numpy as np
import paddle
import pytest

from models import build_model

from .report import FOLDER

CASES = [
    (stage, dtype)
    for stage in ("forward", "metric", "loss", "backward", "training")
    for dtype in ("float32", "float64")
    if (stage, dtype) != ("metric", "float64")  # `evaluate` takes logits to float32
]


@pytest.mark.parametrize(("stage", "dtype"), CASES)
def test_stage(alignment, stage, dtype):
    found = [difference for difference in alignment[0] if (difference.stage, difference.dtype) == (stage, dtype)]
    assert found
    failed = [f"{d.form} {d.quantity}: mean {d.mean:.1e} above {d.threshold:.0e}" for d in found if not d.passed]
    assert not failed, f"{len(failed)} of {len(found)}: " + "; ".join(failed[:5])


def test_both_views_of_every_micro_batch_go_through_the_same_dropouts(alignment):
    for ours, theirs in alignment[1].places.values():
        assert ours == theirs
        assert set(ours.values()) == {2}
        updates, micro_batches, places = (set(column) for column in zip(*ours, strict=True))
        assert len(updates) >= 20 and len(micro_batches) == 2
        assert places == {"pos_drop"} | {f"blocks.{i}.mlp.drop{k}" for i in (0, 1) for k in (1, 2)}


def test_gradients_are_clipped(alignment):
    for norms in alignment[1].norms.values():
        assert sum(norm > 1.0 for norm in norms) > len(norms) / 2


def test_views_have_masks_of_their_own(pytorch):
    from .masks import Masks

    masks = Masks()
    first, second = (masks.draw("place", (100, 100), 0.1) for _ in range(2))
    assert abs(first.mean() - 0.9) < 0.02 and (first != second).mean() == pytest.approx(2 * 0.1 * 0.9, abs=0.02)


def test_replayed_masks_do_what_our_dropout_does():
    """What `masks.py` puts in place of the network's dropouts: x / (1 - rate) where kept, else 0."""
    layer = build_model("ViT-digits", 10, 8, dropout=0.25).pos_dropout
    x = np.random.default_rng(0).normal(size=(50, 50)).astype("float32")
    found = layer(paddle.to_tensor(x)).numpy()
    np.testing.assert_allclose(found, np.where(found != 0, x / 0.75, 0), rtol=1e-6)
    assert 0.2 < (found == 0).mean() < 0.3


def test_the_committed_report_lists_what_is_compared(alignment):
    rows = list(csv.DictReader((FOLDER / "differences.csv").read_text().splitlines()))
    listed = [(row["stage"], row["dtype"], row["form"], row["quantity"]) for row in rows]
    assert listed == [(d.stage, d.dtype, d.form, d.quantity) for d in alignment[0]]
    assert {row["passed"] for row in rows} == {"True"}, "python -m tests.alignment.report writes it anew"
