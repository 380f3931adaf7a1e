"""Old names of configurations, weights and tables are read as the new ones."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from darklens import aliases
from darklens.bundle import Bundle
from darklens.calibration import CalibrationCurve
from darklens.config import load
from darklens.locate import CONTRACT, SHIPPED
from darklens.training.recipe import Recipe

TREE = {
    "schema": 1,
    "name": "r",
    "description": "",
    "model": {"kind": "lens_residual", "sees": "numbers"},
    "data": {"augment": {"kind": "none"}},
    "stages": [{"task": "classify", "epochs": 1}],
}


def test_a_recipe_with_old_keys_and_values_is_read():
    assert load(Recipe, TREE).model.inputs == "summary"
    assert load(Recipe, TREE, ["model.sees=image"]).model.inputs == "image"
    assert load(Recipe, TREE, ["model.inputs=maps"]).model.inputs == "maps"


def test_a_key_is_renamed_where_it_belongs_and_nowhere_else():
    tree = {"sees": "numbers", "model": {"kind": "resnet_simple", "sees": 1}, "members": [TREE["model"]]}
    assert aliases.configuration(tree) == {
        "sees": "numbers",
        "model": {"kind": "resnet_simple", "sees": 1},
        "members": [{"kind": "lens_residual", "inputs": "summary"}],
    }


def test_calibration_curves_of_older_bundles_are_read(tmp_path):
    bundle = Bundle.load("lens_residual")
    curve = CalibrationCurve(predicted=(0.1, 0.9), calibrated=(0.2, 0.8))
    calibration = bundle.contract.calibration.model_copy(update={"curves": (curve,) * 3})
    bundle.contract = bundle.contract.model_copy(update={"calibration": calibration})
    bundle.save(tmp_path)
    tree = json.loads((tmp_path / CONTRACT).read_text())
    tree["calibration"]["curves"] = [{"given": [0.1, 0.9], "meant": [0.2, 0.8]}] * 3
    (tmp_path / CONTRACT).write_text(json.dumps(tree))
    assert Bundle.load(tmp_path).contract.calibration == calibration


def test_weights_with_former_names_are_read_under_the_names_of_today():
    folder = Path(str(SHIPPED)) / "lens_residual_isotropic"
    assert json.loads((folder / "bundle.json").read_text())["model"]["sees"] == "all"  # as it was written
    bundle, stored = Bundle.load(folder), load_file(folder / "model.safetensors")
    assert bundle.contract.model.inputs == "all"
    expected = bundle.network.state_dict()
    assert "summary_mlp.0.weight" in expected and "of_numbers.0.weight" in stored and len(stored) == len(expected)
    assert torch.equal(expected["summary_mlp.0.weight"], stored["of_numbers.0.weight"])
    assert torch.equal(expected["encoder.layers.0.0.weight"], stored["tower.layers.0.0.weight"])


def test_a_weight_is_renamed_only_where_the_network_has_the_new_name():
    assert aliases.state_dict_name("members.0.tower.w", {"members.0.encoder.w"}) == "members.0.encoder.w"
    assert aliases.state_dict_name("tower.w", {"tower.w"}) == "tower.w"
    assert aliases.state_dict_name("tower.w", {"other.w"}) == "tower.w"
