"""What a run takes: counts against the network itself, memory against an emulation, what is chosen for a GPU."""

import dataclasses
import gc
from types import SimpleNamespace

import numpy as np
import paddle
import pytest
from conftest import assert_user_error
from in_process import call
from paddle.base import core

from common.errors import UserError
from data import Sizes
from models import MODELS, build_model, count_parameters
from models.costs import activation_bytes, block_bytes, flops_per_image
from models.vit import ViTConfig
from reproduce import gpu_check, job, plan
from reproduce.plan import Gpu, flops_of_run, flops_per_step, gpu_named, memory_bytes
from reproduce.recipes import HEADLINE, RECIPES, get_recipe

A100 = gpu_named("A100 40GB")


def resolved(name, gpu=None, processes=1, **changes):
    """(recipe, configuration, sizes) as a run on that GPU, or the CPU, has them."""
    recipe, config, sizes = plan.with_sizes(get_recipe(name, **changes))
    return plan.resolve(recipe, config, gpu, processes), config, sizes


def test_the_headline_in_numbers():
    recipe, config, sizes = resolved(HEADLINE)
    assert (count_parameters(config), config.tokens) == (86_167_396, 577)
    assert sizes == Sizes(100, 49_000, 1_000, 10_000)
    assert (recipe.micro_batch_size, recipe.precision) == (32, "fp32")  # on a CPU
    training, evaluation = flops_of_run(recipe, config, sizes)
    # 100 validations of 1,000 images, the test set at 9 of the steps and for the best and the last weights
    assert evaluation == flops_per_image(config) * (100 * 1000 + 11 * 10_000)
    assert training == 10_000 * flops_per_step(recipe, config)
    # 111 GFLOPs forward (55.5 G multiply-adds, timm's figure for vit_base_patch16_384), x 3 x 2 views x 512, less what
    # 576 patches do not need in the last block: query, projection, scores, weighted sum, MLP; and what the second
    # view does not compute again: the patch embedding
    spared = 576 * 2 * (2 * 768**2 + 2 * 577 * 768 + 2 * 768 * 3072) + 576 * 768 * 768
    assert flops_per_step(recipe, config) == pytest.approx(3 * 2 * 512 * (111e9 - spared), rel=0.01)


def test_flops_equal_a_count_of_every_matrix_product():
    """Hooks on the layers count multiply-adds independently; attention's two products are added by hand."""
    config = ViTConfig(num_classes=7, image_size=8, **MODELS["ViT-digits"])
    model = build_model("ViT-digits", 7, 8)
    counted = []
    for layer in model.sublayers():
        if isinstance(layer, paddle.nn.Linear):
            layer.register_forward_post_hook(lambda layer, x, y: counted.append(x[0].size * layer.weight.shape[1]))
        elif isinstance(layer, paddle.nn.Conv2D):
            layer.register_forward_post_hook(lambda layer, x, y: counted.append(y.size * layer.weight[0].size))
    model(paddle.zeros([1, 3, 8, 8]))
    rows = (config.depth - 1) * config.tokens + 1  # the last block has one query, the class token's
    assert flops_per_image(config) == 2 * (sum(counted) + 2 * rows * config.tokens * config.width)


def test_one_view_takes_half_the_work():
    two, one = (flops_per_step(*resolved("digits", num_views=n)[:2]) for n in (2, 1))
    embedding = 2 * 16 * 3 * 2 * 2 * 64  # of the 16 patches of an image, which both views share
    assert two == 2 * one - 3 * 64 * embedding


# ---- memory


class OnePrecisionUp(paddle.nn.Layer):
    """A block as AMP O1 computes it, with float32 for 16 bits and float64 for fp32, for a CPU has no 16-bit products.

    Under O1 layer_norm and softmax compute in the higher precision, the residual is promoted to it, and each product
    casts its input to the lower one.
    """

    def __init__(self, block):
        super().__init__()
        self.block = block
        for norm in (block.norm1, block.norm2):
            norm.to(dtype="float64")

    def forward(self, x, first_only=False):
        block, attn = self.block, self.block.attn
        y = block.norm1(x)
        q, k, v = (layer(y.astype("float32")) for layer in (attn.query, attn.key, attn.value))  # a cast each
        q, k, v = (each.reshape([0, 0, attn.heads, attn.head_dim]).transpose([0, 2, 1, 3]) for each in (q, k, v))
        scores = paddle.matmul(q * attn.head_dim**-0.5, k, transpose_y=True)
        weights = paddle.nn.functional.softmax(scores.astype("float64"), axis=-1).astype("float32")
        x = x + attn.proj(paddle.matmul(weights, v).transpose([0, 2, 1, 3]).flatten(2)).astype("float64")
        return x + block.mlp(block.norm2(x).astype("float32")).astype("float64")


def kept_bytes(block, x) -> int:
    """What one forward pass of `block` adds to this process's tensors, its inputs and weights apart."""

    def allocated():
        gc.collect()
        return core.host_memory_stat_current_value("Allocated", 0)

    before = allocated()
    y = block(x)
    after = allocated()
    del y
    return after - before


@pytest.mark.parametrize("mixed", [False, True])
def test_what_a_block_keeps_is_what_the_estimate_says(mixed):
    """Allocated by Paddle after a forward pass; one precision up every number takes twice its bytes."""
    config = dataclasses.replace(RECIPES[HEADLINE].network(100), depth=1, image_size=192)
    block = paddle.nn.LayerList(build_model("ViT-B_16", 100, 192, depth=1).blocks)[0]
    block.train()
    x = paddle.randn([2, config.tokens, config.width], dtype="float32")
    expected = 2 * block_bytes(config, "bf16" if mixed else "fp32", fused=False)
    if mixed:
        block, x = OnePrecisionUp(block), x.astype("float64")
        masks = 2 * (config.tokens * (config.mlp_width + config.width))  # bytes in any precision
        expected = 2 * (expected - masks) + masks
    x.stop_gradient = False
    # the output, which is as large as the input, stands for it: the estimate counts an input with its block
    assert kept_bytes(block, x) == pytest.approx(expected, rel=0.01)


def test_memory_of_the_headline_an_image():
    """MiB of both views: measured by emulation 911 in bf16 with plain attention, 1,003 in fp32; fused about 410."""
    config = RECIPES[HEADLINE].network(100)
    for precision, fused, expected in (("fp32", False, 1003), ("bf16", False, 911), ("bf16", True, 410)):
        assert 2 * activation_bytes(config, precision, fused) / 2**20 == pytest.approx(expected, rel=0.07)
    assert activation_bytes(config, "bf16", True, recompute=True) < activation_bytes(config, "bf16", True) / 4


def test_memory_grows_with_the_micro_batch_and_the_optimizers_state():
    recipe, config, _ = resolved(HEADLINE)
    one, two = (memory_bytes(recipe, config, n, fused=False) for n in (1, 2))
    adam = memory_bytes(dataclasses.replace(recipe, optimizer="adam"), config, 1, fused=False)
    assert two - one == 2 * activation_bytes(config, "fp32", False)
    assert adam - one == 4 * count_parameters(config)


# ---- what is chosen


@pytest.mark.parametrize(
    ("card", "precision", "micro_batch"),
    [
        ("8", "bf16", 8),
        ("RTX 3090", "bf16", 32),
        ("A100 40GB", "bf16", 64),
        ("NVIDIA A100-SXM4-80GB", "bf16", 128),
        ("V100 16GB", "fp32", 8),
    ],
)
def test_precision_and_micro_batch_for_a_card(card, precision, micro_batch):
    """The largest power of two whose estimate fits into four fifths of the memory."""
    gpu = gpu_named(card)
    recipe, config, _ = resolved(HEADLINE, gpu)
    assert (recipe.precision, recipe.micro_batch_size) == (precision, micro_batch)
    limit = 0.8 * gpu.gib * 2**30
    assert memory_bytes(recipe, config, micro_batch, gpu.fused) <= limit
    assert memory_bytes(recipe, config, 2 * micro_batch, gpu.fused) > limit


def test_what_is_given_stays_and_a_process_takes_no_more_than_its_share():
    recipe, *_ = resolved(HEADLINE, A100, micro_batch_size=4, precision="fp32")
    assert (recipe.precision, recipe.micro_batch_size) == ("fp32", 4)
    assert resolved(HEADLINE, A100, processes=16)[0].micro_batch_size == 32


def test_batch_norm_takes_the_whole_batch_and_two_vits_what_a_cpu_takes():
    """Their memory is not estimated."""
    for changes, size in (({"model": "SE_ResNet50_vd", "dropout": 0.1}, 400), ({"second_model": "ViT-Ti_16"}, 32)):
        recipe = get_recipe(HEADLINE, batch_size=400, **changes)
        assert plan.resolve(recipe, recipe.network(100), A100, 1).micro_batch_size == size


def test_a_network_that_does_not_fit_is_refused_with_what_helps():
    done = call("reproduce.train", "cifar100_vit_l16_rdrop", "--dry_run", "--gpu", "4")
    assert_user_error(done, "needs about", "GiB for one image in bf16", "--recompute true")


@pytest.mark.parametrize("precision", ["auto", "fp16", "fp32"])
def test_a_dry_run_for_another_gpu(precision):
    done = call("reproduce.train", HEADLINE, "--dry_run", "--gpu", "V100 32GB", "--precision", precision)
    assert done.returncode == 0, done.stderr
    assert f"as on V100 32GB, {'fp32' if precision == 'auto' else precision}, micro-batches of" in done.stdout
    assert "of 32 GiB a GPU (estimate)" in done.stdout and "% of the peak of V100" in done.stdout


def test_hours_are_the_work_over_the_peak():
    recipe, config, sizes = resolved(HEADLINE, A100)
    work = flops_of_run(recipe, config, sizes)
    hours = (work[0] / 312e12 + work[1] / 19.5e12) / 0.4 / 3600  # evaluation in fp32
    found = plan.time_needed(*work, recipe.precision, A100)
    assert found.startswith(f"{hours:.1f} to {2 * hours:.1f} hours at 40 to 20 %")
    shared = plan.time_needed(*work, recipe.precision, A100, gpus=2)
    assert shared.startswith(f"{hours / 2:.1f} to {hours:.1f} hours")
    assert "not known for X" in plan.time_needed(*work, "fp32", Gpu("X", 10))


@pytest.mark.parametrize(("flag", "fused"), [("flash", True), ("mem_efficient", True), ("other", False)])
def test_attention_is_fused_only_where_the_build_has_a_kernel(flag, fused, monkeypatch):
    """Paddle takes plain attention elsewhere, and does not say so."""
    found = SimpleNamespace(name="NVIDIA A100-SXM4-40GB", total_memory=40 * 2**30, major=8)
    monkeypatch.setattr(paddle.device.cuda, "get_device_properties", {"cpu": found}.get)
    monkeypatch.setattr(paddle.amp, "is_bfloat16_supported", lambda: True)
    monkeypatch.setattr(paddle.framework, "_global_flags", lambda: {f"FLAGS_{flag}_attn_available": True})
    assert plan.gpu_here() == dataclasses.replace(A100, name=found.name, fused=fused)


def test_a_card_without_16_bits_is_not_taken_for_one_that_has_them(monkeypatch):
    """Paddle would compute in fp32 below compute capability 7.0, and the record would say fp16."""
    found = SimpleNamespace(name="Tesla P100-PCIE-16GB", total_memory=16 * 2**30, major=6)
    monkeypatch.setattr(paddle.device.cuda, "get_device_properties", {"cpu": found}.get)
    monkeypatch.setattr(paddle.amp, "is_bfloat16_supported", lambda: False)
    old, v100 = plan.gpu_here(), gpu_named("V100")
    assert not (old.fp16 or old.bf16 or old.fused) and gpu_check._half(old) == ""
    assert (gpu_check._half(v100), gpu_check._half(A100)) == ("fp16", "bf16")
    with pytest.raises(UserError, match="--precision fp16: Tesla P100-PCIE-16GB cannot compute in it"):
        job._check_precision("fp16", old)
    with pytest.raises(UserError, match="--precision bf16: V100 cannot compute in it"):
        job._check_precision("bf16", v100)
    job._check_precision("fp16", v100)


def test_names_of_cards():
    assert gpu_named("24").gib == 24 and gpu_named("A100 80GB").gib == 80 and gpu_named("H100").gib == 80
    assert gpu_named("NVIDIA GeForce RTX 4090").peak_16 == 165 and gpu_named("NVIDIA A10").gib == 24
    assert np.isclose(gpu_named("Tesla V100-SXM2-32GB").gib, 32) and not gpu_named("V100").bf16
