"""One small population of images and a small run of each sort, which tests of whole commands share."""

from commandline import darklens

POPULATION = "common-test-i"
N = 64  # pixels of the images, of which the networks take the central CROP
CROP = 60
FIELD = f"field.n_pixels={N}"
TRAIN_PER_CLASS, TEST_PER_CLASS = 24, 12
_QUICK = [f"data.preprocess.crop={CROP}", "data.augment.kind=dihedral", "data.validation_fraction=0.5"]
RUNS = {
    "resnet_simple": [*_QUICK, "stages.0.epochs=2"],
    "sis_autoencoder2": [*_QUICK, "stages.0.epochs=1", "stages.1.epochs=1"],
}


def simulate(out, *, n_per_class, seed, form="store"):
    """Run `darklens simulate`."""
    words = ["--n-per-class", n_per_class, "--seed", seed, "--format", form]
    assert darklens("simulate", POPULATION, FIELD, "--out", out, *words) == 0


def training(work, recipe, out, *, seed=0):
    """Return the words of a training of a recipe on the small store."""
    return ["train", recipe, *RUNS[recipe], "--data", work / "train", "--out", out, "--seed", seed]


def make(work):
    """Make a store to train on, other images as a store and as files, and a run without and with a lens step."""
    simulate(work / "train", n_per_class=TRAIN_PER_CLASS, seed=1)
    simulate(work / "test", n_per_class=TEST_PER_CLASS, seed=2)
    simulate(work / "files", n_per_class=TEST_PER_CLASS, seed=2, form="deeplense")
    for recipe in RUNS:
        assert darklens(*training(work, recipe, work / recipe)) == 0
