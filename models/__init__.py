"""The networks: `model_config(name, ...)` and `build_model(name, ...)`; ViT names as in the official R-Drop code.

Every network has its `config`, `model(images) -> logits`, `model.views(images) -> (logits_a, logits_b)` for R-Drop, and
`model.parts()`, what is evaluated by name.
"""

import dataclasses
import functools

import paddle

from common.errors import UserError, near
from models import resnet
from models.resnet import CNNConfig, ResNet
from models.two_networks import TwoNetworks, TwoNetworksConfig
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
NAMES = (*MODELS, *resnet.NETWORKS)

Config = ViTConfig | CNNConfig | TwoNetworksConfig


def model_config(name: str, num_classes: int, image_size: int, second: str = "", **rates) -> Config:
    """The configuration of the named network, or of two that are trained side by side.

    `rates` are further fields: the dropout rates, of which a convolutional network has `dropout` alone.
    Raises UserError for an unknown name, an image size that the patches do not divide, a rate without a place.
    """
    if second:
        return TwoNetworksConfig(*(model_config(each, num_classes, image_size, **rates) for each in (name, second)))
    if name in resnet.NETWORKS:
        for option, value in rates.items():
            if option != "dropout" and value:
                raise UserError(f"{name} has no place for --{option} {value}: only --dropout, before its head")
        return CNNConfig(name, num_classes, image_size, rates.get("dropout", 0.0))
    if name not in MODELS:
        raise UserError(f"unknown model {name!r}: {near(name, NAMES)}")
    config = ViTConfig(num_classes=num_classes, image_size=image_size, **{**MODELS[name], **rates})
    if image_size < config.patch_size or image_size % config.patch_size:
        text = f"image size {image_size} does not fit {name}"
        raise UserError(f"{text}: choose a multiple of its patch size {config.patch_size}")
    return config


def build_model(name: str, num_classes: int, image_size: int, **rates):
    """A freshly initialised network; see `model_config` for the arguments and errors."""
    return build(model_config(name, num_classes, image_size, **rates))


def build(config: Config) -> ViT | ResNet | TwoNetworks:
    """A freshly initialised network of any configuration."""
    if isinstance(config, TwoNetworksConfig):
        return TwoNetworks(config, build(config.first), build(config.second))
    return ResNet(config) if isinstance(config, CNNConfig) else ViT(config)


def state_shapes(config: Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array in the state of the network."""
    with paddle.LazyGuard():  # without memory for them
        return {name: tuple(value.shape) for name, value in build(config).state_dict().items()}


@functools.cache
def count_parameters(config: Config) -> int:
    """Numbers that are trained, so without the running statistics of batch norm."""
    with paddle.LazyGuard():
        return sum(p.size for p in build(config).parameters() if not p.stop_gradient)


def has_batch_norm(config: Config) -> bool:
    """Whether its training depends on which images are computed together."""
    if isinstance(config, TwoNetworksConfig):
        return has_batch_norm(config.first) or has_batch_norm(config.second)
    return isinstance(config, CNNConfig)


def config_from_dict(fields: dict) -> Config:
    """The configuration that `dataclasses.asdict` gave. Raises ValueError when it is none."""
    if fields.keys() == {"first", "second"}:
        return TwoNetworksConfig(*(_single_config(fields[name]) for name in ("first", "second")))
    return _single_config(fields)


def _single_config(fields) -> ViTConfig | CNNConfig:
    if not isinstance(fields, dict):
        raise ValueError(f"network has {fields!r:.40}")
    kind = CNNConfig if "network" in fields else ViTConfig
    check_types(kind, fields)
    if kind is CNNConfig and fields["network"] not in resnet.NETWORKS:
        raise ValueError(f"network is {fields['network']!r:.40}")
    try:
        return kind(**fields)
    except TypeError as reason:
        raise ValueError(str(reason)) from None


def check_types(kind: type, fields: dict) -> None:
    """Raise ValueError unless `fields` are some of those of the dataclass `kind`, each of its type."""
    types = {f.name: f.type for f in dataclasses.fields(kind)}
    for name, value in fields.items():
        if type(value) not in ((int, float) if types.get(name) is float else (types.get(name),)):
            raise ValueError(f"network has {name!r:.40} {value!r:.40}")
