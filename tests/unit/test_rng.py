import numpy as np
import pytest
from scipy.stats import kstest

from darklens import rng


def test_a_stream_depends_only_on_its_address():
    first = rng.generator(0, "noise", 3).random(4).tolist()
    rng.generator(0, "noise", 2).random(100)
    assert rng.generator(0, "noise", 3).random(4).tolist() == first


def test_addresses_do_not_collide():
    addresses = [(0, "a", 1), (0, "a", 11), (1, "a", 1), (0, "b", 1), (0, "a", 1, 1), (0, "a1")]
    seeds = {rng.integer_seed(seed, *rest) for seed, *rest in addresses}
    assert len(seeds) == len(addresses)
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, (0xFFFFFFFF, 0xFFFFFFFF), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            (0xA4093822, 0x299F31D0),
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_reproduces_the_published_test_vectors(counter, key, expected):
    assert rng.philox(np.array(counter, dtype=np.uint64), key).tolist() == expected


def test_uniform_numbers_of_a_row_do_not_depend_on_other_rows():
    together = rng.uniforms(3, "a", rows=[5, 2**40, 7], n=9)
    assert np.array_equal(together[1:2], rng.uniforms(3, "a", rows=[2**40], n=9))
    assert np.array_equal(together[:, :4], rng.uniforms(3, "a", rows=[5, 2**40, 7], n=4))
    assert len({float(v) for v in together.ravel()}) == together.size
    assert not np.isin(together, rng.uniforms(3, "b", rows=[5, 2**40, 7], n=9)).any()


def test_uniform_numbers_are_uniform_and_independent():
    u = rng.uniforms(1, "spread", rows=range(2000), n=50)
    assert u.min() > 0 and u.max() < 1
    assert kstest(u.ravel(), "uniform").pvalue > 1e-4
    neighbours = [np.corrcoef(u[:, 0], u[:, 1])[0, 1], np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]]
    assert max(map(abs, neighbours)) < 4 / np.sqrt(2000)
