from darklens import rng


def test_a_stream_depends_on_its_address_alone():
    first = rng.generator(0, "noise", 3).random(4).tolist()
    rng.generator(0, "noise", 2).random(100)
    assert rng.generator(0, "noise", 3).random(4).tolist() == first


def test_addresses_do_not_collide():
    addresses = [(0, "a", 1), (0, "a", 11), (1, "a", 1), (0, "b", 1), (0, "a", 1, 1), (0, "a1")]
    seeds = {rng.integer_seed(seed, *rest) for seed, *rest in addresses}
    assert len(seeds) == len(addresses)
    assert all(0 <= seed < 2**63 for seed in seeds)
