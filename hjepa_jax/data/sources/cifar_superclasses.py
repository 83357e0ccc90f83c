"""The 20 superclasses of CIFAR-100.

A. Krizhevsky, "Learning multiple layers of features from tiny images", 2009, table on page 59.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_log = logging.getLogger(__name__)

# Superclass -> its five classes, both named and ordered as in the data set's own files.
CIFAR100_SUPERCLASSES: dict[str, tuple[str, str, str, str, str]] = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}


def cifar100_superclasses(class_names: Sequence[str]) -> npt.NDArray[np.int32] | None:
    """Returns the superclass number int32 [100] of each class; None if these are other classes."""
    number = {
        name: coarse
        for coarse, members in enumerate(CIFAR100_SUPERCLASSES.values())
        for name in members
    }
    if sorted(class_names) != sorted(number):
        return None
    return np.array([number[name] for name in class_names], np.int32)


def label_maps(data_name: str, class_names: Sequence[str]) -> dict[str, npt.NDArray[np.int32]]:
    """Returns the coarser labellings that a data set is evaluated by as well: name -> int32 [C].

    Args:
      data_name: config.data.name; only 'cifar100' has one, 'superclass'.
      class_names: the classes in the order of their numbers.
    """
    if data_name != "cifar100":
        return {}
    superclasses = cifar100_superclasses(class_names)
    if superclasses is None:
        _log.warning(
            "The class names of the data are not those of CIFAR-100, so there are no superclasses "
            "to evaluate."
        )
        return {}
    return {"superclass": superclasses}
