"""Counter-based random numbers: reproducible, independent, uniform."""

import numpy as np
from scipy import stats

from hjepa_jax.data import counter_random
from hjepa_jax.data.counter_random import Stream


def _splitmix64(state: int) -> int:
    """The published algorithm on Python integers."""
    mask = (1 << 64) - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_mix_is_splitmix64() -> None:
    # The first output for seed 0 is the published test value.
    assert _splitmix64(0) == 0xE220A8397B1DCDAF
    values = np.array([0, 1, 2**63, 2**64 - 1], np.uint64)
    assert [int(v) for v in counter_random.mix(values)] == [_splitmix64(int(v)) for v in values]


def test_uniforms_are_uniform_and_independent_of_grouping() -> None:
    key = counter_random.stream_key(7, Stream.AUGMENTATION, 3)
    draws = counter_random.uniforms(key, np.arange(20000)[:, None], np.arange(5))
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(draws.T) - np.eye(5)).max() < 0.03
    assert (counter_random.uniforms(key, np.array([123]), np.array([4])) == draws[123, 4]).all()


def test_streams_differ_by_seed_purpose_and_epoch() -> None:
    keys = {
        counter_random.stream_key(seed, purpose, epoch)
        for seed in (-1, 0, 1, 2**40)
        for purpose in Stream
        for epoch in range(5)
    }
    assert len(keys) == 4 * len(Stream) * 5


def test_permutation_is_a_permutation_and_mixes() -> None:
    key = counter_random.stream_key(0, Stream.ORDER)
    order = counter_random.permutation(key, 5000)
    assert (np.sort(order) == np.arange(5000)).all()
    assert abs(np.corrcoef(order, np.arange(5000))[0, 1]) < 0.05
    # The order of independently computed hashes: the same on every machine and NumPy version.
    expected = sorted(range(8), key=lambda i: _splitmix64(key ^ i))
    assert counter_random.permutation(key, 8).tolist() == expected
