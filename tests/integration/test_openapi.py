"""The gateway against its OpenAPI document: schemathesis makes requests from it and judges the answers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from families import write_linear_app
from harness import running

from understudy.adapters.operator_tokens import known_token

EXAMPLES = 40  # for each operation
TIMEOUT_S = 120
# A deadline of a microsecond may pass before anything else is seen to be wrong: 408.
SETTINGS = """
[parameters]
model = "plain"
version = "1"

[checks.negative_data_rejection]
expected-statuses = [400, 404, 405, 408, 409, 413, 415, 501, 503]

[checks.positive_data_acceptance]
enabled = false  # no schema knows what a model's inputs are
"""


def test_answers_are_what_the_document_says(tmp_path: Path):
    write_linear_app(tmp_path / "apps" / "plain", "plain", "standard")

    async def test() -> None:
        async with running(tmp_path) as harness:
            (tmp_path / "schemathesis.toml").write_text(SETTINGS)
            url = f"http://127.0.0.1:{harness.ports[0]}/openapi.json"
            command = [str(Path(sys.executable).with_name("schemathesis")), "run", url, "--seed", "1"]
            control = harness.cluster.control
            command += ["--header", f"Authorization: Bearer {known_token(control.urls[0], control.data_dir)}"]
            command += [
                "--max-examples",
                str(EXAMPLES),
                "--phases",
                "examples,coverage,fuzzing",
                "--no-color",
            ]
            done = await asyncio.to_thread(
                subprocess.run, command, capture_output=True, text=True, timeout=TIMEOUT_S, cwd=tmp_path
            )
            assert done.returncode == 0, done.stdout + done.stderr

    asyncio.run(test())
