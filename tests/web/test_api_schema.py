"""Requests that schemathesis generates from the OpenAPI document, and its checks of each response."""

import subprocess
import sys

import httpx

BOUNDED = ["--generation-deterministic", "--max-examples", "15", "--phases", "examples,coverage,fuzzing"]
BOUNDED += ["--request-timeout", "60"]  # s, on a busy machine
# Any bytes are a file: bytes that "violate" the format binary are a bad file (status `error`), and no bad request.
CONFIG = """
[[operations]]
include-path = "/v1/search"
include-method = "POST"
checks.negative_data_rejection.enabled = false
"""


def test_responses_conform_to_the_document(live, tmp_path):
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    command = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"]
    command += ["run", f"{live}/openapi.json", *BOUNDED]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Selected: 10/10" in done.stdout and "Tested: 10" in done.stdout


def test_the_document_lists_the_models_and_all_error_responses(live):
    document = httpx.get(f"{live}/openapi.json").json()
    (model,) = [p for p in document["paths"]["/v1/predict"]["post"]["parameters"] if p["name"] == "model"]
    assert model["schema"]["enum"] == ["tiny"]
    for code in ("401", "408", "413", "415", "422", "429", "503"):
        response = document["paths"]["/v1/predict"]["post"]["responses"][code]
        assert response["content"]["application/json"]["schema"]["$ref"].endswith("/ErrorResponse")
