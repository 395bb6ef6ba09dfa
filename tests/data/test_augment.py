import numpy as np
import paddle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data.augment import Augmentation, resize_crops


def pillow_resize(image: np.ndarray, box, size: int) -> np.ndarray:
    """Crop and resize (3, H, W) by Pillow in float mode, which does not round, to [-1, 1]."""
    top, left, h, w = map(int, box)
    planes = [
        Image.fromarray(plane[top : top + h, left : left + w].astype(np.float32), mode="F").resize(
            (size, size), Image.Resampling.BILINEAR
        )
        for plane in image
    ]
    return np.stack([np.asarray(plane) for plane in planes]) / 127.5 - 1


@pytest.mark.parametrize(("height", "width", "size"), [(32, 32, 384), (32, 32, 64), (48, 80, 24), (8, 8, 8)])
def test_crops_equal_pillow_before_its_rounding(height, width, size):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 3, height, width), np.uint8)
    how = Augmentation(flip=True)
    draws = how.draw(rng, 16)
    boxes, flips = how.boxes(draws, np.full(16, height), np.full(16, width)), how.flips(draws)
    assert 0 < flips.sum() < 16
    found = resize_crops(paddle.to_tensor(images), size, boxes, flips).numpy()
    for i in range(16):
        expected = pillow_resize(images[i], boxes[i], size)
        expected = expected[..., ::-1] if flips[i] else expected
        # 2e-5 in [-1, 1] is 1/400 of a grey level; the contract allows a whole one
        np.testing.assert_allclose(found[i], expected, rtol=0, atol=2e-5)


def test_the_whole_image_at_its_own_size_stays_as_it_is():
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), np.uint8)
    found = resize_crops(paddle.to_tensor(images), 32).numpy()
    np.testing.assert_allclose(found, images / 127.5 - 1, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    st.integers(1, 300), st.integers(1, 300), st.floats(0.05, 1.0), st.integers(0, 2**32 - 1)
)  # height, width, smallest area, seed
def test_all_crops_lie_inside_the_image(height, width, min_area, seed):
    how = Augmentation(min_area=min_area)
    draws = how.draw(np.random.default_rng(seed), 64)
    top, left, h, w = how.boxes(draws, np.full(64, height), np.full(64, width)).T
    assert (top >= 0).all() and (left >= 0).all() and (h >= 1).all() and (w >= 1).all()
    assert (top + h <= height).all() and (left + w <= width).all()


def test_area_and_ratio_have_the_stated_distribution():
    """On an image so large that rounding to pixels and the border hardly matter."""
    how = Augmentation(min_area=0.05, max_area=0.5)
    n, side = 20_000, 10_000
    top, left, h, w = how.boxes(how.draw(np.random.default_rng(0), n), np.full(n, side), np.full(n, side)).T
    area, ratio = h * w / side**2, w / h
    assert area.min() > 0.0499 and area.max() < 0.5001
    assert abs(area.mean() - 0.275) < 0.004
    assert ratio.min() > 0.7495 and ratio.max() < 1.3342
    assert abs(np.log(ratio).mean()) < 0.005
    free = side - h  # uniform positions fill what is free
    assert abs((top / free).mean() - 0.5) < 0.01 and abs((left / (side - w)).mean() - 0.5) < 0.01


def test_a_strip_falls_back_to_its_centre():
    how = Augmentation(min_area=0.9)
    boxes = how.boxes(how.draw(np.random.default_rng(0), 4), np.full(4, 10), np.full(4, 100))
    np.testing.assert_array_equal(boxes, [[0, 43, 10, 13]] * 4)  # as wide as ratio 4/3 allows, centred


def test_min_area_1_keeps_the_whole_image():
    how = Augmentation(min_area=1.0)
    boxes = how.boxes(how.draw(np.random.default_rng(0), 3), np.full(3, 20), np.full(3, 30))
    np.testing.assert_array_equal(boxes, [[0, 0, 20, 30]] * 3)


def test_an_image_is_cropped_alike_in_any_piece_of_the_batch():
    how = Augmentation(flip=True)
    draws = how.draw(np.random.default_rng(0), 8)
    whole = how.boxes(draws, np.full(8, 32), np.full(8, 32))
    parts = [how.boxes(draws[a:b], np.full(b - a, 32), np.full(b - a, 32)) for a, b in ((0, 1), (1, 4), (4, 8))]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
