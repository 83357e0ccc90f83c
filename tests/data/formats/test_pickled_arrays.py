"""Arrays in pickles: equal to what `pickle` reads."""

import pickle

import numpy as np
import pytest

from hjepa_jax.data.formats import plain_pickle
from hjepa_jax.data.formats.pickled_arrays import ARRAYS


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", ["u1", "<i8", ">i4", "i2"])
@pytest.mark.parametrize("shape", [(), (0,), (6,), (2, 3), (1, 2, 3)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_integer_arrays_are_what_pickle_reads(protocol, kind, shape, order) -> None:
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(kind, order=order)
    content = pickle.dumps([array], protocol)
    loaded = plain_pickle.load(content, ARRAYS, ("numpy.ndarray",))[0].array()
    np.testing.assert_array_equal(loaded, array)
    assert loaded.dtype == array.dtype
