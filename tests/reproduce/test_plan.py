import dataclasses
import re

import paddle
import pytest

from data import dataset_sizes
from models import MODELS, build_model, model_config
from models.vit import ViTConfig
from reproduce import ROOT
from reproduce.plan import count, count_parameters, make_plan, settings_by_memory, with_epochs
from reproduce.recipes import RECIPES, get_recipe


def plan_of(recipe):
    sizes = dataset_sizes(recipe.dataset, recipe.data_dir, **recipe.split())
    return make_plan(with_epochs(recipe, sizes), recipe.network(sizes.classes), sizes)


def test_the_headline_in_numbers():
    recipe = RECIPES["cifar100_vit_b16_rdrop"]
    plan = plan_of(recipe)
    assert plan.counts.parameters == 86_167_396
    assert plan.tokens == 577
    assert plan.train_images == 49_000
    assert plan.micro_batches == 16
    assert plan.epochs == pytest.approx(10_000 * 512 / 49_000)
    # 100 validations of 1,000 images, the test set at 9 of the steps and for the best and the last weights
    forward = plan.counts.flops_per_image
    assert plan.flops_evaluation == forward * (100 * 1000 + 11 * 10_000)
    assert plan.flops_training == 10_000 * plan.flops_per_step
    # 111 GFLOPs forward (55.5 G multiply-adds, timm's figure for vit_base_patch16_384), x 3 x 2 views x 512, less what
    # 576 patches do not need in the last block: query, projection, scores, weighted sum, MLP; and what the second
    # view does not compute again: the patch embedding
    spared = 576 * 2 * (2 * 768**2 + 2 * 577 * 768 + 2 * 768 * 3072) + 576 * 768 * 768
    assert plan.flops_per_step == pytest.approx(3 * 2 * 512 * (111e9 - spared), rel=0.01)


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
    rows = (config.depth - 1) * config.tokens + 1  # the last block has one query, the class token's
    attention = 2 * rows * config.tokens * config.width
    assert config.flops_per_image() == 2 * (sum(counted) + attention)


@pytest.mark.parametrize("k", [1, 3])
def test_flops_of_views_that_share_blocks(k):
    """Two passes less a pass of a network of the first k blocks, whose last one is whole."""
    config = ViTConfig(num_classes=7, image_size=8, **MODELS["ViT-digits"])
    first = dataclasses.replace(config, depth=k + 1).flops_by_part()
    last_block_and_head = dataclasses.replace(config, depth=1).flops_by_part()
    shared = sum(first.values()) - sum(last_block_and_head.values()) + first["patch embedding"]
    assert config.flops_before(k) == shared
    plan, plain = (plan_of(get_recipe("digits", views_split_at=at)) for at in (k, 0))
    images = RECIPES["digits"].batch_size
    saved = config.flops_before(k) - config.flops_before(0)
    assert plain.flops_per_step - plan.flops_per_step == 3 * images * saved


def test_one_view_takes_half_the_work_and_memory_grows_with_the_micro_batch():
    two, one = get_recipe("digits"), get_recipe("digits", num_views=1)
    embedding = 2 * 16 * 3 * 2 * 2 * 64  # of the 16 patches of an image, which both views share
    assert plan_of(two).flops_per_step == 2 * plan_of(one).flops_per_step - 3 * 64 * embedding
    small = dataclasses.replace(two, micro_batch_size=8)
    assert plan_of(small).memory_bytes < plan_of(two).memory_bytes


def test_convolutional_networks_are_counted_too():
    """Multiply-adds at 224 px as PaddleClas lists them (4.4 and 4.28 G) but for what its list leaves out."""
    first, second = (count(model_config(name, 1000, 224)) for name in ("Res2Net50_vd_26w_4s", "SE_ResNet50_vd"))
    assert (first.parameters, second.parameters) == (25_718_352, 28_107_256)
    assert first.flops_per_image == pytest.approx(2 * 4.49e9, rel=0.01)
    assert second.flops_per_image == pytest.approx(2 * 4.33e9, rel=0.01)
    both = count(model_config("Res2Net50_vd_26w_4s", 1000, 224, "SE_ResNet50_vd"))
    assert both.parameters == first.parameters + second.parameters


def test_the_settings_by_memory_in_the_readme_are_those_of_the_dry_run():
    recipe = get_recipe("cifar100_vit_b16_rdrop")
    lines = settings_by_memory(recipe, plan_of(recipe).counts)
    fitting = {int(line.split()[0]): line for line in lines}
    for readme in ("README.md", "README_cn.md"):
        table = (ROOT / readme).read_text().splitlines()
        rows = [line.split("|")[1:4] for line in table if "`--precision bf16 --micro" in line]
        named = {int(size): row for row in rows for size in re.findall(r"\d+", row[0])}
        assert named.keys() == fitting.keys()
        for size, (_, fp32, bf16) in named.items():
            assert f"--precision fp32 {fp32.strip(' `')} or {bf16.strip(' `')}" in fitting[size]
