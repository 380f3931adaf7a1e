"""BibTeX that parses, with existing keys and the works that were used."""

import re
from pathlib import Path

import pytest
import yaml
from commandline import darklens

from darklens import populations
from darklens.bundle import Bundle
from darklens.calibration import CalibrationCurve
from darklens.cite import bibtex
from darklens.cite.bibtex import cite, entries
from darklens.cite.works import _NETWORKS, _PROFILES, of_population
from darklens.locate import SHIPPED, shipped
from darklens.physics.profiles import PROFILES
from darklens.recipes import names
from darklens.training import recipe as recipes

NEEDED = {
    "article": {"journal"},
    "inproceedings": {"booktitle"},
    "book": {"publisher"},
    "misc": set(),
    "software": set(),
}


def parse(text):
    """Parse BibTeX: entries with balanced braces, comments outside."""
    parsed, at = {}, 0
    text = re.sub(r"^%.*$", "", text, flags=re.MULTILINE)
    while (start := text.find("@", at)) >= 0:
        assert text[at:start].strip() == "", text[at:start]
        kind = re.match(r"@(\w+)\{(\w+),", text[start:])
        assert kind, text[start : start + 40]
        depth, i, begun = 1, start + kind.end(), start + kind.end()
        fields, name, value_from = {}, "", None
        while depth:
            char = text[i]
            if char == "{":
                if depth == 1:
                    name, value_from = text[begun:i].strip(" \n,=").strip(), i + 1
                depth += 1
            elif char == "}":
                depth -= 1
                if depth == 1:
                    assert name not in fields
                    fields[name], begun = text[value_from:i], i + 1
            i += 1
        assert text[begun : i - 1].strip(" ,\n") == ""
        assert kind[2] not in parsed
        parsed[kind[2]] = {"kind": kind[1]} | fields
        at = i
    assert text[at:].strip() == ""
    return parsed


def test_all_references_parse_and_are_complete():
    parsed = parse("\n".join(entries().values()))
    assert len(parsed) == len(entries()) > 30
    for key, fields in parsed.items():
        assert {"author", "title", "year"} | NEEDED[fields["kind"]] <= set(fields), key
        assert (
            re.fullmatch(r"(19|20)\d\d", fields["year"]) and fields["year"] == re.sub(r"\D", "", key)[-4:]
        ) or key in (
            "astropy2022",
            "euclidvis2025",
        )
        assert re.fullmatch(r"10\.\d{4,}/\S+", fields.get("doi", "10.1000/x")), key
        assert re.fullmatch(r"\d{4}\.\d{4,5}", fields.get("eprint", "0000.0000")), key
        assert ("eprint" in fields) == ("archiveprefix" in fields), key


def test_the_whole_file_is_entries_and_comments():
    text = (Path(bibtex.__file__).parent / "references.bib").read_text(encoding="utf-8")
    assert set(parse(text)) == set(entries())


@pytest.mark.parametrize("name", names())
def test_recipes_cite_their_method_and_software(name):
    parsed = parse(cite(name) if name not in shipped() else bibtex._of_recipe(recipes.get(name)))
    assert {"darklens", "ansel2024", "falcon2019"} < set(parsed)
    assert len(parsed) >= 6
    assert ("lee2018" in parsed) == (recipes.get(name).stages[-1].task == "classify")


def test_the_cited_works_are_those_used():
    assert "dosovitskiy2021" in cite("sis_transformer") and "dosovitskiy2021" not in cite("sis_autoencoder2")
    assert "bengio2009" in cite("resnet_18_curriculum") and "bengio2009" not in cite("resnet_18")
    assert "@inproceedings{kingma2015," in cite("resnet_18_legacy")
    keys = {name: {key for key, _ in of_population(populations.get(name))} for name in populations.names()}
    assert {"kormann1994", "euclidvis2025", "baltz2009"} <= keys["realistic-euclid"]
    assert "windhorst2011" in keys["realistic-hst"] and "ivezic2019" in keys["realistic-rubin"]
    assert "schneider1992" in keys["common-test-i"] and "kormann1994" not in keys["common-test-i"]
    assert all(keys[name] <= set(entries()) for name in keys)


def test_profiles_and_networks_have_a_work():
    assert set(_PROFILES) == {name for name in PROFILES if name in _PROFILES or name.isalpha()}
    assert {key for keys in (*_PROFILES.values(), *_NETWORKS.values()) for key in keys} <= set(entries())


def test_a_shipped_model_cites_its_version(capsys):
    assert darklens("cite", "lens_residual") == 0
    parsed = parse(capsys.readouterr().out)
    contract = Bundle.load("lens_residual").contract
    assert parsed["darklens"]["version"] == contract.provenance["version"]
    assert contract.provenance["commit"] in parsed["darklens"]["note"]
    assert {"marquardt1963", "guo2017", "schneider1992", "alexander2020", "loshchilov2019"} <= set(parsed)


def test_isotonic_curves_cite_their_work(tmp_path):
    bundle = Bundle.load("lens_residual")
    assert "zadrozny2002" not in cite("lens_residual")
    calibration = bundle.contract.calibration
    curve = CalibrationCurve(predicted=(0.0, 1.0), calibrated=(0.01, 0.99))
    calibration = calibration.model_copy(update={"curves": (curve,) * 3})
    bundle.contract = bundle.contract.model_copy(update={"calibration": calibration})
    bundle.save(tmp_path / "bundle")
    assert "zadrozny2002" in parse(cite(str(tmp_path / "bundle")))


def test_a_run_cites_the_recipe_it_was_trained_by(tmp_path):
    recipe = recipes.get("lens_residual", ["stages.0.optimiser.kind=adam", "stages.0.ema_decay=0"])
    from darklens.config import dump

    Bundle.load("lens_residual").save(tmp_path / "run" / "bundle")
    (tmp_path / "run" / "config.yaml").write_text(dump(recipe))
    parsed = parse(cite(str(tmp_path / "run")))
    assert "kingma2015" in parsed and "loshchilov2019" not in parsed and "izmailov2018" not in parsed


def test_an_unknown_subject_is_one_sentence(capsys):
    assert darklens("cite", "lens_residul") == 2
    assert "is neither a run, a bundle" in capsys.readouterr().err


def test_citation_cff_agrees_with_cite():
    root = Path(__file__).resolve().parent.parent.parent.parent
    cff = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    software = parse(cite("resnet_18"))["darklens"]
    assert cff["title"] == software["title"] and cff["authors"][0]["name"] == software["author"].strip("{}")
    assert (Path(str(SHIPPED)) / "lens_residual").is_dir()
