"""What the config files beside a foreign weight file say of it: Hugging Face's two, and timm's config.json."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from common.errors import UserError
from common.pixels import SCALES, Resize
from models import check_types
from models.vit import ACTIVATIONS, POOLINGS, ViTConfig

Facts = dict[str, Callable]  # name -> gives the value, or raises UserError where it cannot be computed here

_FIELDS = {  # what says it in config.json or in timm's model_args -> ViTConfig's field, the values that it may have
    "num_attention_heads": ("heads", None),
    "num_heads": ("heads", None),
    "layer_norm_eps": ("layer_norm_epsilon", None),
    "hidden_act": ("activation", ACTIVATIONS),
    "act_layer": ("activation", ACTIVATIONS),
    "global_pool": ("pooling", POOLINGS),
}
_RESAMPLING = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # Pillow's numbers 0 to 5
_SEEN_IN_THE_ARRAYS = "patch_size embed_dim depth mlp_ratio qkv_bias class_token fc_norm num_classes in_chans"
_HARMLESS = "init_values img_size dynamic_img_size drop_rate drop_path_rate weight_init"
_MODEL_ARGS = ("global_pool", "act_layer", "num_heads", *_SEEN_IN_THE_ARRAYS.split(), *_HARMLESS.split())


def read_configs(folder: Path, width: int, said: dict) -> dict:
    """The facts in the config files of `folder` about a ViT of that width, but for those that are `said` already.

    Keys: fields of ViTConfig; `scale`, a name of SCALES; `resize`, a Resize; `class_names`; each if it is known.
    Raises UserError for files that are damaged or of another network, and for what cannot be computed here, by name.
    """
    found = {}
    for name, read in (("config.json", _config), ("preprocessor_config.json", _preprocessor_config)):
        path = folder / name
        if not path.is_file():
            continue
        try:
            facts = read(json.loads(path.read_text("utf-8")), width, str(path))
            found |= {fact: value() for fact, value in facts.items() if fact not in said}
            check_types(ViTConfig, {k: v for k, v in found.items() if k in ViTConfig.__dataclass_fields__})
        except UserError as reason:
            raise UserError(f"{path}: {reason}; say it by an option (--help), or move that file away") from None
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError, ArithmeticError) as reason:
            raise UserError(f"{path}: no config of timm or Hugging Face ({reason!r:.80}); move it away") from None
    return found


def _config(config: dict, width: int, path: str) -> Facts:
    own_width = config.get("hidden_size", config.get("num_features", width))
    if own_width != width:
        raise UserError(f"is of a network of width {own_width!r:.40}, and the weights are {width} wide")
    arguments, labels, facts = config.get("model_args", {}), config.get("label_names"), {}
    if config.get("pretrained_cfg") is not None:  # of timm
        facts["pooling"] = partial(str, "token")
        facts["scale"] = partial(_scale, config["pretrained_cfg"]["mean"], config["pretrained_cfg"]["std"])
        facts["resize"] = partial(_timm_resize, config["pretrained_cfg"], path)
    for name, value in {**config, **arguments}.items():
        if name in arguments and name not in _MODEL_ARGS:
            raise UserError(f"{name!r:.40} in model_args cannot be computed here")
        if name in _FIELDS:
            ours, known = _FIELDS[name]
            facts[ours] = partial(_known, name, value, known)
    if isinstance(config.get("id2label"), dict):
        labels = [config["id2label"][str(number)] for number in range(len(config["id2label"]))]
    if isinstance(labels, list) and all(isinstance(name, str) for name in labels) and "LABEL_0" not in labels:
        facts["class_names"] = partial(list, labels)  # in the order of the logits; LABEL_0 and so on say nothing
    return facts


def _timm_resize(config: dict, path: str) -> Resize:
    mode = _known("crop_mode", config.get("crop_mode", "center"), ("center", "squash"))
    resample = _known("interpolation", config["interpolation"], _RESAMPLING)
    share = float(config["crop_pct"])
    if not 0.25 <= share <= 1:
        raise UserError(f"crop_pct {share} cannot be computed here")
    return Resize(0, share, mode == "center", resample, path)


def _preprocessor_config(config: dict, width: int, path: str) -> Facts:
    scale = partial(str, "0..1")
    if config.get("do_normalize", True):
        scale = partial(_scale, config["image_mean"], config["image_std"])
    return {"scale": scale, "resize": partial(_hugging_face_resize, config, path)}


def _hugging_face_resize(config: dict, path: str) -> Resize:
    for name in ("do_resize", "do_rescale"):
        if not config.get(name, True):
            raise UserError(f"{name} false cannot be computed here")
    size, crop = config["size"], config.get("do_center_crop", False)
    shorter = isinstance(size, dict) and "shortest_edge" in size
    if shorter and not crop:
        raise UserError("a picture resized without a crop is not square, which cannot be computed here")
    if isinstance(size, dict):
        size = size["shortest_edge"] if shorter else size["height"]
    # without a crop both sides at once: whatever image size was chosen
    return Resize(int(size) if crop else 0, 1.0, shorter, _RESAMPLING[range(6)[config["resample"]]], path)


def _known(what: str, value, known):
    if known is not None and not (isinstance(value, str) and value in known):
        raise UserError(f"{what} {value!r:.40} cannot be computed here")
    return value


def _scale(mean, std) -> str:
    """The name of a scale with that mean and deviation of pixels from 0 to 1."""
    for name, (divisor, offset) in SCALES.items():
        means, deviations = np.multiply(divisor, offset) / 255, np.divide(divisor, 255)
        if np.allclose(mean, means, atol=1e-3) and np.allclose(std, deviations, atol=1e-3):
            return name
    raise UserError(f"pixel mean {mean!r:.60} and deviation {std!r:.60} are of no scale known here")
