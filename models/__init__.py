"""The networks: `build_model(name, num_classes, image_size)`; names as in the official R-Drop code."""

from common.errors import UserError, near
from models.vit import ViT, ViTConfig

MODELS = {
    "ViT-Ti_16": {"patch_size": 16, "width": 192, "depth": 12, "heads": 3, "mlp_width": 768},
    "ViT-S_16": {"patch_size": 16, "width": 384, "depth": 12, "heads": 6, "mlp_width": 1536},
    "ViT-B_16": {"patch_size": 16, "width": 768, "depth": 12, "heads": 12, "mlp_width": 3072},
    "ViT-B_32": {"patch_size": 32, "width": 768, "depth": 12, "heads": 12, "mlp_width": 3072},
    "ViT-L_16": {"patch_size": 16, "width": 1024, "depth": 24, "heads": 16, "mlp_width": 4096},
    "ViT-L_32": {"patch_size": 32, "width": 1024, "depth": 24, "heads": 16, "mlp_width": 4096},
    "ViT-H_14": {"patch_size": 14, "width": 1280, "depth": 32, "heads": 16, "mlp_width": 5120},
    "ViT-digits": {"patch_size": 2, "width": 64, "depth": 4, "heads": 4, "mlp_width": 128},  # 8 px digits
}


def model_config(name: str, num_classes: int, image_size: int, **options) -> ViTConfig:
    """The configuration of the named network; `options` are further ViTConfig fields (dropout rates, ...).

    Raises UserError for an unknown name or an image size that the patches do not divide.
    """
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}: {near(name, MODELS)}")
    config = ViTConfig(num_classes=num_classes, image_size=image_size, **{**MODELS[name], **options})
    if image_size < config.patch_size or image_size % config.patch_size:
        raise UserError(
            f"image size {image_size} does not fit {name}: choose a multiple of its patch size {config.patch_size}"
        )
    return config


def build_model(name: str, num_classes: int, image_size: int, **options) -> ViT:
    """A freshly initialised network; see `model_config` for the arguments and errors."""
    return ViT(model_config(name, num_classes, image_size, **options))
