"""Bundles of the Hugging Face hub: its calls over HTTP, its cache on disk, and what a hostile repository cannot do."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import yaml
from commandline import darklens, rows_of
from hubserver import COMMIT, hub_of
from huggingface_hub import ModelCard, constants
from safetensors.numpy import save

from darklens import hub
from darklens.bundle import Bundle
from darklens.calibration import Calibration
from darklens.errors import ConfigError, InputError
from darklens.files import sha256_of
from darklens.locate import SHIPPED, is_model, locate

FOLDER = Path(str(SHIPPED)) / "lens_residual"
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "common-test-i" / "no" / "1.npy"
OWN = {name: (FOLDER / name).read_bytes() for name in ("bundle.json", "model.safetensors", "ood.safetensors")}


class Exploit:
    def __reduce__(self):
        return Path.touch, (Path("executed"),)


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    hub.fetch.cache_clear()


@pytest.fixture
def serve(monkeypatch):
    """Return what serves repositories for the length of a test and tells which files were fetched."""
    from contextlib import ExitStack

    with ExitStack() as stack:

        def start(repositories, **more):
            address, downloaded = stack.enter_context(hub_of(repositories, **more))
            monkeypatch.setattr(constants, "ENDPOINT", address)
            monkeypatch.setattr(
                constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
            )
            return downloaded

        yield start


def changed(**changes):
    """Return the shipped contract with changes."""
    return json.dumps(json.loads(OWN["bundle.json"]) | changes).encode()


def test_a_repository_is_loaded_and_only_its_weights_and_contract_are_fetched(serve):
    more = {"pytorch_model.bin": pickle.dumps(Exploit()), "modeling.py": b"raise SystemExit", "README.md": b"# hello"}
    downloaded = serve({"lab/lenses": OWN | more})
    assert Bundle.load("lab/lenses").contract == Bundle.load(FOLDER).contract
    assert set(downloaded) == set(OWN)
    assert Bundle.from_pretrained("lab/lenses", revision="v1").contract.recipe == "lens_residual"
    assert locate(Path("lab/lenses")).name == COMMIT and not Path("executed").exists()


def test_commands_take_a_repository(serve):
    serve({"lab/lenses": OWN})
    assert darklens("predict", "lab/lenses", EXAMPLE, "--out", "p.csv") == 0
    assert rows_of(Path("p.csv"))[0]["status"] == "ok"


def test_what_is_in_the_cache_is_read_without_a_network(monkeypatch):
    """The cache as the hub's own client lays it out: references to commits, snapshots of links to blobs."""
    own = Path("cache/models--lab--lenses")
    snapshot, blobs = own / "snapshots" / COMMIT, own / "blobs"
    for folder in (snapshot, blobs, own / "refs"):
        folder.mkdir(parents=True)
    (own / "refs/main").write_text(COMMIT)
    for name, data in OWN.items():
        (blobs / name).write_bytes(data)
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert Bundle.load("lab/lenses").contract.recipe == "lens_residual"
    hub.fetch.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert Bundle.load(f"lab/lenses@{COMMIT}").contract.recipe == "lens_residual"
    with pytest.raises(InputError, match="lab/others is no folder here, is not in the cache"):
        Bundle.load("lab/others")


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("lab/missing", "lab/missing is no folder here and no repository"),
        ("lab/lenses@v9", "lab/lenses has no revision v9"),
        ("lab/data", "lab/data on the Hugging Face hub holds no bundle.json"),
    ],
)
def test_what_is_not_there_is_one_sentence(serve, name, complaint, capsys):
    serve({"lab/lenses": OWN, "lab/data": {"images.csv": b"1"}})
    np.save("lens.npy", np.ones((150, 150)))
    assert darklens("predict", name, "lens.npy", "--out", "p.csv") == 2
    error = capsys.readouterr().err
    assert complaint in error and error.count("\n") == 1 and not Path("p.csv").exists()


def test_an_enormous_repository_is_not_fetched(serve):
    downloaded = serve({"lab/huge": OWN}, sizes={"model.safetensors": 10**12})
    with pytest.raises(InputError, match=r"model\.safetensors has 1000\.0 GB"):
        Bundle.load("lab/huge")
    assert downloaded == []


def weights(**arrays):
    """Return a bundle of these weights whose contract matches their checksum."""
    data = save(arrays)
    Path("w").write_bytes(data)
    return {"model.safetensors": data, "bundle.json": changed(weights_sha256=sha256_of(Path("w")), ood_sha256="")}


def system(**changes):
    return json.loads(OWN["bundle.json"])["model"] | changes


HOSTILE = {
    "pickle": lambda: OWN | {"model.safetensors": pickle.dumps(Exploit())},
    "pickle with its checksum": lambda: {
        "model.safetensors": Path("w").write_bytes(pickle.dumps(Exploit())) and Path("w").read_bytes(),
        "bundle.json": changed(weights_sha256=sha256_of(Path("w")), ood_sha256=""),
    },
    "other weights": lambda: weights(a=np.zeros(3)),
    "no JSON": lambda: OWN | {"bundle.json": b"{"},
    "deep JSON": lambda: OWN | {"bundle.json": b"[" * 100_000},
    "a list": lambda: OWN | {"bundle.json": b"[]"},
    "a network of any size": lambda: OWN | {"bundle.json": changed(model=system(width=10**9))},
    "images of any size": lambda: OWN | {"bundle.json": changed(n_pixels=10**9)},
    "no such system": lambda: OWN | {"bundle.json": changed(model={"kind": "os.system"})},
    "a path as population": lambda: OWN | {"bundle.json": changed(model=system(population="/etc/passwd"))},
    "a path outside": lambda: OWN | {"bundle.json": changed(model=system(population="../../secret.yaml"))},
    "unknown keys": lambda: OWN | {"bundle.json": changed(weights="../../../weights")},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_repositories_are_refused_in_one_sentence(serve, case, capsys):
    serve({"evil/repo": HOSTILE[case]()})
    np.save("lens.npy", np.ones((150, 150)))
    assert darklens("predict", "evil/repo", "lens.npy", "--out", "p.csv") == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Unexpected" not in error
    assert not Path("executed").exists() and not Path("p.csv").exists()


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("owner/name", True),
        ("owner/name@v1.0", True),
        ("owner/name@feature/x", True),
        ("name", False),
        ("a/b/c", False),
        ("../name", False),
        ("owner/..", False),
        ("/owner/name", False),
        ("owner/na..me", False),
        ("owner/", False),
    ],
)
def test_which_names_can_be_repositories(name, is_one):
    assert hub.is_repository(name) == is_one


def test_a_folder_goes_before_a_repository_of_its_name():
    Bundle.load(FOLDER).save_pretrained("lab/lenses")
    assert not hub.is_repository("lab/lenses") and is_model(Path("lab/lenses"))
    assert Bundle.from_pretrained("lab/lenses").contract.recipe == "lens_residual"


def test_without_the_extra_the_sentence_says_what_to_install(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ConfigError, match=r"pip install 'darklens\[hub\]'"):
        Bundle.load("lab/lenses")


def test_the_card_has_the_metadata_that_the_hub_reads():
    bundle = Bundle.load(FOLDER)
    bundle.save_pretrained("out", name="lab/lenses")
    card = ModelCard.load("out/README.md")
    assert card.data.license == "mit" and card.data.library_name == "darklens"
    assert "gravitational-lensing" in card.data.tags and card.data.pipeline_tag == "image-classification"
    (auc,) = [r for r in card.data.eval_results if r.metric_type == "roc_auc"]
    assert auc.metric_value == pytest.approx(bundle.contract.validation["val_auc"], abs=1e-6)
    assert "darklens predict lab/lenses" in card.text
    head = Path("out/README.md").read_text(encoding="utf-8").split("---")[1]
    assert yaml.safe_load(head)["model-index"][0]["results"][0]["dataset"]["name"] == "common-test-i"


def test_a_card_of_a_bundle_without_calibration_says_so():
    bundle = Bundle.load(FOLDER)
    bundle.contract = bundle.contract.model_copy(update={"calibration": None, "validation": {}})
    bundle.save_pretrained("out")
    assert "It is not calibrated" in Path("out/README.md").read_text(encoding="utf-8")
    assert Calibration() is not None
