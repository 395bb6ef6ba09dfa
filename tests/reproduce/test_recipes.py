import pytest

from common.errors import UserError
from reproduce.recipes import RECIPES, SETTINGS, get_recipe, what_is_wrong


def test_the_headline_is_what_the_official_code_does():
    """dropreg/R-Drop, vit_src: defaults of train.py, but for the steps, which the paper gives as 10,000."""
    recipe = RECIPES["cifar100_vit_b16_rdrop"]
    expected = {
        "dataset": "cifar100",
        "model": "ViT-B_16",
        "image_size": 384,
        "crop_min_area": 0.05,
        "flip": False,
        "dropout": 0.1,
        "attention_dropout": 0.0,
        "projection_dropout": 0.0,
        "num_views": 2,
        "alpha": 0.3,
        "kl_sum_over": 32,
        "loss_form": "sum",
        "num_steps": 10_000,
        "batch_size": 512,
        "learning_rate": 1e-2,
        "schedule": "cosine",
        "warmup_steps": 500,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": 42,
        "eval_every": 100,
    }
    assert {name: getattr(recipe, name) for name in expected} == expected


def test_baselines_differ_from_rdrop_in_the_views_alone():
    for size in ("b16", "l16"):
        rdrop, baseline = (RECIPES[f"cifar100_vit_{size}_{kind}"].meaning() for kind in ("rdrop", "baseline"))
        assert {name for name in rdrop if rdrop[name] != baseline[name]} == {"num_views"}


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_can_be_trained(name):
    assert get_recipe(name) == RECIPES[name]
    assert RECIPES[name].name == name and RECIPES[name].summary
    assert RECIPES[name].select_on == "validation"  # never silently on the test set


def test_every_setting_explains_itself_and_refuses_what_is_no_number():
    for field in SETTINGS:
        assert len(field.metadata["help"]) > 5, field.name
        if field.type in (int, float):
            assert what_is_wrong(field, field.default) == "" != what_is_wrong(field, float("nan")), field.name


def test_meaning_leaves_out_what_only_the_hardware_needs():
    recipe = get_recipe("digits")
    other = get_recipe("digits", micro_batch_size=8, device="cpu", workers=0, save_every=7)
    assert recipe.meaning() == other.meaning()
    assert recipe.meaning() != get_recipe("digits", alpha=0.5).meaning()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_steps": 0}, "--num_steps 0: must be at least 1"),
        ({"num_steps": -5}, "--num_steps -5: must be at least 1"),
        ({"batch_size": 0}, "--batch_size 0"),
        ({"dropout": 1.0}, "--dropout 1.0: must be below 1"),
        ({"learning_rate": 0.0}, "--learning_rate 0.0: must be above 0"),
        ({"learning_rate": float("inf")}, "--learning_rate inf: must be below inf"),
        ({"crop_min_area": 0.0}, "--crop_min_area 0.0: must be above 0"),
        ({"crop_min_area": 1.5}, "--crop_min_area 1.5: must be at most 1"),
        ({"alpha": float("nan")}, "--alpha nan: must be at least 0"),
        ({"learning_rate": float("nan")}, "--learning_rate nan: must be above 0"),
        ({"alpha": -0.1}, "--alpha -0.1"),
        ({"model": "ViT-B16"}, "--model ViT-B16: did you mean ViT-B_16"),
        ({"num_views": 3}, "--num_views 3: must be at most 2"),
        ({"schedule": "cosin"}, "did you mean cosine"),
        ({"validation_per_class": 0}, "--select_on test"),
        ({"seed": 2**63}, "--seed 9223372036854775808: must be below 9223372036854775808"),
        ({"validation_share": 1.0}, "--validation_share 1.0: must be below 1"),
        ({"num_epochs": 2, "num_steps": 5}, "--num_epochs 2 and --num_steps 5: give one of them"),
    ],
)
def test_values_that_cannot_be_trained(changes, message):
    with pytest.raises(UserError) as error:
        get_recipe("digits", **changes)
    assert message in str(error.value)


def test_unknown_recipe_lists_the_near_ones():
    with pytest.raises(UserError, match="did you mean cifar100_vit_b16_rdrop"):
        get_recipe("cifar100_vitb16_rdrop")


def test_a_number_of_steps_counts_in_a_recipe_of_epochs():
    assert get_recipe("images_vit_b16", num_steps=7).num_epochs == 0
    assert get_recipe("images_vit_b16").num_epochs == 10
