"""The encoded sets of an evaluation, and what they are in other coordinates."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hjepa_jax.evaluation.coordinates.transformed import Coordinates
from hjepa_jax.evaluation.features import Encode, Features, select_state_part


class Encoded(NamedTuple):
    """The features of one encoder, in some coordinates.

    Attributes:
      encode: images uint8 [N, S, S, 3] -> states [N, D].
      train_states, test_states: full states of both sets.
      views: full states of two augmented views of the same images, [M, D] each.
      raw: the test states as encoded, whatever the coordinates.
      shared: number of labeled test images that are also training images.
      split_qp: whether the states are [q | p].
      state_part: the part that is evaluated.
    """

    encode: Encode
    train_states: Features
    test_states: Features
    views: tuple[np.ndarray, np.ndarray]
    raw: np.ndarray
    shared: int
    split_qp: bool
    state_part: str

    def select(self, states: np.ndarray) -> np.ndarray:
        """Returns the evaluated part of states."""
        return select_state_part(states, self.state_part, self.split_qp)

    @property
    def train(self) -> Features:
        """The evaluated part of the training states."""
        return self.train_states._replace(features=self.select(self.train_states.features))

    @property
    def test(self) -> Features:
        """The evaluated part of the test states."""
        return self.test_states._replace(features=self.select(self.test_states.features))

    def moved(self, to: Coordinates) -> Encoded:
        """Returns them in other coordinates."""
        encode, apply = self.encode, to.apply
        return self._replace(
            encode=lambda images: apply(np.asarray(encode(images), np.float32)),
            train_states=self.train_states._replace(features=apply(self.train_states.features)),
            test_states=self.test_states._replace(features=apply(self.test_states.features)),
            views=(apply(self.views[0]), apply(self.views[1])),
        )
