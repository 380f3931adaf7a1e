"""Requests that schemathesis makes from the OpenAPI document, good and bad ones, and what it checks of each answer."""

import subprocess
import sys

import httpx

BOUNDED = ["--generation-deterministic", "--max-examples", "15", "--phases", "examples,coverage,fuzzing"]


def test_answers_are_as_the_document_says(live, tmp_path):
    command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
    command += ["run", f"{live}/openapi.json", *BOUNDED]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Selected: 8/8" in done.stdout and "Tested: 8" in done.stdout


def test_the_document_names_the_models_and_every_answer_that_is_no_success(live):
    document = httpx.get(f"{live}/openapi.json").json()
    (model,) = [p for p in document["paths"]["/v1/predict"]["post"]["parameters"] if p["name"] == "model"]
    assert model["schema"]["enum"] == ["tiny"]
    for code in ("401", "408", "413", "415", "422", "429", "503"):
        answer = document["paths"]["/v1/predict"]["post"]["responses"][code]
        assert answer["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorAnswer")
