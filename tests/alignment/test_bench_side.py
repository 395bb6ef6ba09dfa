"""All competitors of the benchmark do the same work as ours."""

import itertools

import numpy as np
import paddle

from data.augment import resize_crops
from reproduce.bench import Step, step_part

from .bench_side import TorchEvaluation, TorchStep, random_images


def joined(model) -> dict[str, np.ndarray]:
    """Weights of ours with query, key and value in one, as timm has them; matrices (in, out)."""
    found = {}
    for name, value in model.named_parameters():
        for part in ("query", "key", "value"):
            name = name.replace(part, "qkv")
        found.setdefault(name, []).append(value.numpy())
    return {name: np.concatenate(parts, axis=-1) for name, parts in found.items()}


def tiny_step(make, competitor: str, **more):
    """A side of a tiny part as an object of this process, without dropout."""
    part = step_part("tiny", "digits", image_size=8, batch_size=4, at_once=1, classes=10)
    (options,) = (side.options for side in part.sides if side.name == competitor)
    where = "changes" if "changes" in options else "network"
    return make(*random_images(4, 8, 10, "float32"), **{**options, where: {**options[where], "dropout": 0.0}, **more})


def ours_with_a_head():
    """Ours; a head of zeros would leave the rest of the network without a gradient."""
    ours = tiny_step(Step, "ours")
    ours.model.head.weight.set_value(np.random.default_rng(1).normal(0, 0.5, (64, 10)).astype(np.float32))
    return ours


SECOND_VIEW = 1.5  # times the logits of the first: without dropout both would be the same, and the KL 0


def second_views(ours):
    """Give ours a second view; the hook that is returned makes the second of two passes of a peer the same."""

    def views(images):
        logits = ours.model(images)
        return logits, SECOND_VIEW * logits

    ours.model.views = views
    factors = itertools.cycle((1.0, SECOND_VIEW))
    return lambda layer, inputs, logits: next(factors) * logits


def test_plain_paddle_does_the_work_of_ours():
    """Other layers with the same results: the first loss, and the weights after a step of one view."""
    ours, plain = (tiny_step(Step, "ours_baseline", fast=fast) for fast in (True, False))
    plain.model.set_state_dict(ours.model.state_dict())
    assert {type(layer) for layer in ours.model.sublayers()} != {type(layer) for layer in plain.model.sublayers()}
    losses = [(ours(), plain()) for _ in range(3)]
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-4)
    for (name, value), expected in zip(plain.model.named_parameters(), ours.model.parameters(), strict=True):
        np.testing.assert_allclose(value.numpy(), expected.numpy(), atol=1e-4, err_msg=name)


def test_pytorch_does_the_work_of_ours(pytorch):
    ours, theirs = ours_with_a_head(), tiny_step(TorchStep, "pytorch")
    theirs.model.register_forward_hook(second_views(ours))
    import torch

    def timm_weights():
        return {name: value.T if value.ndim == 2 else value for name, value in joined(ours.model).items()}

    theirs.model.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in timm_weights().items()})
    losses = [(ours(), theirs()) for _ in range(3)]
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-4)
    after = timm_weights()
    for name, value in theirs.model.named_parameters():
        np.testing.assert_allclose(value.detach().numpy(), after[name], atol=1e-4, err_msg=name)


def test_both_evaluations_see_the_same_pictures(pytorch):
    images, labels = random_images(3, 32, 10, "uint8")
    expected = resize_crops(paddle.to_tensor(images), 48).numpy()
    network = {"patch_size": 2, "width": 8, "depth": 1, "heads": 1, "mlp_width": 8, "image_size": 48, "num_classes": 10}
    theirs = TorchEvaluation(images, labels, network=network, batch_size=2)
    np.testing.assert_allclose(theirs.prepared(images).numpy(), expected, atol=1e-5)
