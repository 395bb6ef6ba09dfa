"""The real ImageNet-trained ViT-Ti/16 beside timm, on real images."""

import numpy as np
import paddle

from data import load_dataset
from models.weights import model_from_file


def test_the_real_vit_ti16_gives_the_logits_of_timm(pytorch, vit_ti16_file, cifar100_folder):
    import torch
    from safetensors.torch import load_file

    from .torch_side import build_vit

    ours, _, _ = model_from_file(vit_ti16_file)
    shape = {"patch_size": 16, "width": 192, "depth": 12, "heads": 3, "mlp_width": 768}
    theirs = build_vit(**shape, image_size=224, num_classes=1000)
    theirs.load_state_dict(load_file(vit_ti16_file), strict=True)
    theirs.eval()
    test = load_dataset("cifar100", str(cifar100_folder)).test
    requests = ((np.arange(start, start + 25), None) for start in range(0, 100, 25))
    found, expected = [], []
    with paddle.no_grad(), torch.no_grad():
        for images, _ in test.stream(requests, 224):
            found.append(ours(images).numpy())
            expected.append(theirs(torch.from_numpy(images.numpy())).numpy())
    found, expected = np.concatenate(found), np.concatenate(expected)
    assert found.shape == (100, 1000)
    assert np.abs(found - expected).max() < 1e-4
    assert (found.argmax(-1) == expected.argmax(-1)).all()
