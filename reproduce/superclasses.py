"""The 20 superclasses of CIFAR-100 and their classes, as its page lists them (cs.toronto.edu/~kriz/cifar.html)."""

import numpy as np

SUPERCLASSES = {
    "aquatic mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit and vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household electrical devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large man-made outdoor things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large natural outdoor scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large omnivores and herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium-sized mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles 1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles 2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}

# Both are numbered in alphabetical order; so are the labels of the data set.
NAMES = tuple(SUPERCLASSES)
CLASSES = tuple(sorted(name for classes in SUPERCLASSES.values() for name in classes))
SUPERCLASS_OF = np.array(
    [next(i for i, classes in enumerate(SUPERCLASSES.values()) if name in classes) for name in CLASSES]
)  # (100,): label -> superclass


def confusion(labels: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Shares (20, 20): of the images of superclass i (row), how many are taken for one of superclass j."""
    counts = np.zeros((len(NAMES), len(NAMES)))
    np.add.at(counts, (SUPERCLASS_OF[labels], SUPERCLASS_OF[classes]), 1)
    return counts / counts.sum(axis=1, keepdims=True)
