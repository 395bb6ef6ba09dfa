"""timm's VisionTransformer without torchvision.

Importing any part of timm imports all of it, and timm's reading and augmenting of images (timm.data) and its frozen
batch norm need torchvision. The network of the proof needs neither. torchvision ties itself to one exact build of
PyTorch with compiled operators, so rather than demand it, two stand-ins take its place where it is missing:
`timm.data` with its constants only, and a class nobody makes an object of.
"""

import importlib.machinery
import importlib.util
import runpy
import sys
import types
from pathlib import Path

from torch import nn


def _stand_in(name: str, **content) -> types.ModuleType:
    module = types.ModuleType(name, "Stand-in, see tests/alignment/timm_alone.py.")
    module.__path__ = []
    module.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
    vars(module).update((key, value) for key, value in content.items() if not key.startswith("__"))
    sys.modules[name] = module
    return module


def _without_torchvision() -> None:
    class FrozenBatchNorm2d(nn.Module):
        """Only ever the second argument of isinstance()."""

    for name in ("torchvision", "torchvision.ops"):
        _stand_in(name)
    _stand_in("torchvision.ops.misc", FrozenBatchNorm2d=FrozenBatchNorm2d)
    folder = Path(importlib.util.find_spec("timm").submodule_search_locations[0]) / "data"
    data = _stand_in("timm.data", **runpy.run_path(str(folder / "constants.py")))
    data.__path__ = [str(folder)]  # its plain files, such as model_config.py, still import


if importlib.util.find_spec("torchvision") is None:
    _without_torchvision()

from timm.models.vision_transformer import VisionTransformer  # noqa: E402

__all__ = ["VisionTransformer"]
