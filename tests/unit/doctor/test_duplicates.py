import numpy as np
import pytest

from darklens import populations
from darklens.data.store import Store, StoreIndex, write_index, write_shard
from darklens.doctor.duplicates import duplicates, fingerprints, joined
from darklens.doctor.examine import examine
from darklens.errors import InputError
from darklens.simulate.batch import simulate_batch

SMALL = populations.get("common-test-i", ("field.n_pixels=48",))
IMAGES = simulate_batch(SMALL, 1, range(36))[0]


def store_of(path, images, labels=None, **about):
    labels = np.arange(len(images)) % 3 if labels is None else np.asarray(labels)
    shard = write_shard(path, 0, images, {"label": labels})
    about = {"source": "here", "version": "0", **about}
    write_index(
        path,
        StoreIndex(
            classes=["no", "sphere", "vort"], n_pixels=images.shape[-1], pixel_scale=0.05, shards=[shard], **about
        ),
    )
    return Store(path)


def twins(*stores):
    prints = [
        joined([fingerprints(s.images(range(i, min(i + 7, len(s))))) for i in range(0, len(s), 7)]) for s in stores
    ]
    return [(d.first, d.second, d.store, d.kind) for d in duplicates(list(stores), prints)]


def test_different_images_are_not_duplicates_nor_are_two_exposures_of_one_lens(tmp_path):
    bright = populations.get("common-test-i", ("field.n_pixels=48", "source.amplitude=1.0e+5", "noise.sky=1000"))
    once = simulate_batch(bright, 1, range(6))[0]
    again = (once + np.random.default_rng(0).normal(0, 5e-4, once.shape)).astype(np.float32)
    assert twins(store_of(tmp_path / "a", np.concatenate([IMAGES, once, again]))) == []


def test_equal_bytes(tmp_path):
    assert twins(store_of(tmp_path / "a", IMAGES[[0, 1, 0, 2, 0]])) == [
        (0, 2, 0, "same bytes"),
        (0, 4, 0, "same bytes"),
    ]


@pytest.mark.parametrize("quarter_turns", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_rotated_mirrored_and_rescaled_copies(tmp_path, quarter_turns, mirrored):
    copy = np.rot90(IMAGES[5:6], quarter_turns, (2, 3))
    copy = (37.5 * (copy[..., ::-1] if mirrored else copy) + 1000).astype(np.float32)
    kind = "rotated, mirrored or rescaled"
    assert twins(store_of(tmp_path / "a", np.concatenate([IMAGES, copy]))) == [(5, 36, 0, kind)]
    within, between = (5, 36, 0, kind), (36, 0, 1, "same bytes")
    assert twins(Store(tmp_path / "a"), store_of(tmp_path / "b", copy)) == [within, between]


def test_a_copy_of_eight_bits(tmp_path):
    copy = (IMAGES[7:8] * 255).round()
    assert twins(store_of(tmp_path / "a", IMAGES), store_of(tmp_path / "b", copy)) == [
        (7, 0, 1, "rotated, mirrored or rescaled")
    ]


def test_constant_images_and_stores_of_another_size(tmp_path):
    dark = np.stack([np.zeros((1, 48, 48)), np.ones((1, 48, 48))]).astype(np.float32)
    first = store_of(tmp_path / "a", np.concatenate([IMAGES[:4], dark]))
    assert [t[3] for t in twins(first)] == ["rotated, mirrored or rescaled"]
    assert twins(store_of(tmp_path / "c", IMAGES[:4]), store_of(tmp_path / "b", IMAGES[:4, :, 4:-4, 4:-4])) == []


def test_the_report_names_duplicates_and_different_labels(tmp_path):
    first = store_of(tmp_path / "a", np.concatenate([IMAGES, IMAGES[3:4]]), [*np.arange(36) % 3, 1])
    second = store_of(tmp_path / "b", IMAGES[10:12])
    report = examine(first, [second])
    assert report["duplicates"]["n"] == 3
    within, between = (w for w in report["warnings"] if "byte for byte" in w)
    assert within.startswith("1 image is a duplicate within the store, 1 byte for byte")
    assert "1 of them with a different label (for example, image 36 equals image 3)" in within
    assert between.startswith(f"2 images are shared with {tmp_path / 'b'}") and "2 of them with" in between


def test_stores_of_equal_seed_give_a_warning(tmp_path):
    tree = SMALL.model_dump(mode="json", by_alias=True)
    first = store_of(tmp_path / "a", IMAGES, population=tree, seed=1)
    others = [
        store_of(tmp_path / "b", IMAGES[:1] + 1, population=tree, seed=2),
        store_of(tmp_path / "c", IMAGES[:1, :, ::-1].cumsum(2), population=tree | {"version": 9}, seed=1),
    ]
    warnings = [w for w in examine(first, others)["warnings"] if "same seed" in w]
    assert len(warnings) == 1 and str(tmp_path / "c") in warnings[0] and "same random numbers" in warnings[0]


def test_nan_pixels_are_refused(tmp_path):
    images = IMAGES.copy()
    images[4, 0, 3, 3] = np.nan
    with pytest.raises(InputError, match="NaN or infinite"):
        examine(store_of(tmp_path / "a", images))
