import dataclasses

import paddle
import pytest

from models import MODELS, build_model, model_config
from models.vit import ViTConfig
from reproduce.plan import count_parameters, make_plan
from reproduce.recipes import RECIPES, get_recipe


def test_the_headline_in_numbers():
    recipe = RECIPES["cifar100_vit_b16_rdrop"]
    plan = make_plan(recipe, model_config(recipe.model, 100, recipe.image_size))
    assert plan.parameters == 86_167_396
    assert plan.tokens == 577
    assert plan.train_images == 49_000
    assert plan.micro_batches == 16
    assert plan.epochs == pytest.approx(10_000 * 512 / 49_000)
    # 100 validations of 1,000 images, the test set at 9 of the steps and for the best and the last weights
    forward = plan.flops_per_step // (3 * 2 * 512)
    assert plan.flops_evaluation == forward * (100 * 1000 + 11 * 10_000)
    assert plan.flops_training == 10_000 * plan.flops_per_step
    # 111 GFLOPs forward (55.5 G multiply-adds, timm's figure for vit_base_patch16_384), x 3 x 2 views x 512
    assert plan.flops_per_step == pytest.approx(3 * 2 * 512 * 111e9, rel=0.01)


@pytest.mark.parametrize("name", ["ViT-digits", "ViT-Ti_16", "ViT-B_32"])
@pytest.mark.parametrize("bias", [True, False])
def test_parameters_are_counted_as_the_network_has_them(name, bias):
    size = 8 if name == "ViT-digits" else 64
    model = build_model(name, 7, size, qkv_bias=bias)
    assert count_parameters(model.config) == sum(p.size for p in model.parameters())


def test_flops_equal_a_count_of_every_matrix_product():
    """Hooks on the layers count multiply-adds independently; attention's two products are added by hand."""
    config = ViTConfig(num_classes=7, image_size=8, **MODELS["ViT-digits"])
    model = build_model("ViT-digits", 7, 8)
    counted = []

    def linear(layer, inputs, output):
        counted.append(inputs[0].size * layer.weight.shape[1])

    def convolution(layer, inputs, output):
        counted.append(output.size * layer.weight.size // layer.weight.shape[0])

    for layer in model.sublayers():
        if isinstance(layer, paddle.nn.Linear):
            layer.register_forward_post_hook(linear)
        elif isinstance(layer, paddle.nn.Conv2D):
            layer.register_forward_post_hook(convolution)
    model(paddle.zeros([1, 3, 8, 8]))
    attention = config.depth * 2 * config.tokens**2 * config.width
    assert config.flops_per_image() == 2 * (sum(counted) + attention)


def test_one_view_halves_the_work_and_memory_grows_with_the_micro_batch():
    two, one = get_recipe("digits"), get_recipe("digits", num_views=1)
    config = model_config("ViT-digits", 10, 8)
    assert make_plan(two, config).flops_per_step == 2 * make_plan(one, config).flops_per_step
    small = dataclasses.replace(two, micro_batch_size=8)
    assert make_plan(small, config).memory_bytes < make_plan(two, config).memory_bytes
