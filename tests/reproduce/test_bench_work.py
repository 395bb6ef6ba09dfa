"""All competitors of the benchmark do the same work as ours."""

import itertools

import numpy as np
import paddle
import pytest
from PIL import Image

from data.augment import full_boxes, resize_crops
from reproduce.bench import Step, step_part
from reproduce.bench_peers import PaddleVision, Pillow, TorchEvaluation, TorchStep, random_images
from reproduce.bench_port import Step as PortStep


def joined(model) -> dict[str, np.ndarray]:
    """Weights of ours with query, key and value in one, as both peers have them; matrices (in, out)."""
    found = {}
    for name, value in model.named_parameters():
        for part in ("query", "key", "value"):
            name = name.replace(part, "qkv")
        found.setdefault(name, []).append(value.numpy())
    return {name: np.concatenate(parts, axis=-1) for name, parts in found.items()}


def tiny_step(make, competitor: str):
    """A side of a tiny part as an object of this process, one step a call, without dropout."""
    part = step_part("tiny", "digits", image_size=8, batch_size=4, steps=1, classes=10)
    (options,) = (side.options for side in part.sides if side.name == competitor)
    where = "changes" if competitor == "ours" else "network"
    return make(*random_images(4, 8, 10, "float32"), **{**options, where: {**options[where], "dropout": 0.0}})


def or_skip(make, *arguments, **options):
    """A task of PyTorch's side."""
    try:
        return make(*arguments, **options)
    except ImportError as reason:
        pytest.skip(f"{reason}: the work of PyTorch is not compared; source setup_env.sh dev installs it")


def port_name(name: str) -> str:
    for here, there in (("patch_embed.proj", "patch_embed"), ("mlp.fc1", "mlp.0"), ("mlp.fc2", "mlp.3")):
        name = name.replace(here, there)
    return name


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


def test_the_plain_paddle_program_does_the_work_of_ours():
    ours, port = ours_with_a_head(), tiny_step(PortStep, "port")
    port.model.register_forward_post_hook(second_views(ours))
    weights = {port_name(name): value for name, value in joined(ours.model).items()}
    assert port.model.set_state_dict({name: paddle.to_tensor(value) for name, value in weights.items()}) == ([], [])
    before = port.model.blocks[0].attn.qkv.weight.numpy()
    losses = [(ours()["loss"], port()["loss"]) for _ in range(3)]
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-4)
    assert losses[0][0] > losses[2][0]
    after = {port_name(name): value for name, value in joined(ours.model).items()}
    for name, value in port.model.named_parameters():
        np.testing.assert_allclose(value.numpy(), after[name], atol=1e-4, err_msg=name)
    assert np.abs(port.model.blocks[0].attn.qkv.weight.numpy() - before).max() > 1e-3


def test_pytorch_does_the_work_of_ours():
    ours, theirs = ours_with_a_head(), or_skip(tiny_step, TorchStep, "pytorch")
    theirs.model.register_forward_hook(second_views(ours))
    import torch

    def timm_weights():
        return {name: value.T if value.ndim == 2 else value for name, value in joined(ours.model).items()}

    theirs.model.load_state_dict({name: torch.from_numpy(value.copy()) for name, value in timm_weights().items()})
    losses = [(ours()["loss"], theirs()["loss"]) for _ in range(3)]
    np.testing.assert_allclose(*zip(*losses, strict=True), rtol=1e-4)
    after = timm_weights()
    for name, value in theirs.model.named_parameters():
        np.testing.assert_allclose(value.detach().numpy(), after[name], atol=1e-4, err_msg=name)


def test_all_inputs_are_the_same_pictures():
    """A whole picture without a crop: Pillow and Paddle round to bytes, so they may be one grey level off."""
    images, labels = random_images(3, 32, 10, "uint8")
    expected = resize_crops(paddle.to_tensor(images), full_boxes(3, 32, 32), 48).numpy()
    options = {"image_size": 48, "batch_size": 3, "batches": 1}
    pillow, vision = Pillow(images, labels, **options), PaddleVision(images, labels, **options)
    pillow.box = lambda width, height: (0, 0, width, height)
    vision.prepared.transforms[0]._dynamic_get_param = lambda image: (0, 0, *image.size)
    for pipeline in (pillow, vision):
        found = pipeline.stacked([pipeline.prepared(Image.fromarray(pixels)) for pixels in pipeline.images])
        np.testing.assert_allclose(np.asarray(found), expected, atol=1.01 / 127.5)
    network = {"patch_size": 2, "width": 8, "depth": 1, "heads": 1, "mlp_width": 8, "image_size": 48, "num_classes": 10}
    theirs = or_skip(TorchEvaluation, images, labels, network=network, batch_size=2)
    np.testing.assert_allclose(theirs.prepared(images).numpy(), expected, atol=1e-5)


def test_random_crops_of_the_peers_are_those_of_training():
    pillow = Pillow(*random_images(1, 32, 10, "uint8"), image_size=8, batch_size=1, batches=1)
    boxes = np.array([pillow.box(100, 100) for _ in range(2000)])
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    assert boxes.min() >= 0 and boxes.max() <= 100
    areas, ratios = widths * heights / 1e4, widths / heights
    assert 0.045 < areas.min() < 0.08 and areas.max() > 0.9 and abs(areas.mean() - 0.5) < 0.05
    assert 0.7 < ratios.min() < 0.8 and 1.25 < ratios.max() < 1.4
