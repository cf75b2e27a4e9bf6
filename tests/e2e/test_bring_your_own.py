"""examples/bring-your-own: each is built, deployed to one running cluster, asked, and loses its worker.

What it answers is compared with what the library says that it is made with, run directly.
"""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

import numpy as np
import onnxruntime
import pytest
from calling import Calls, calling
from running_cluster import running
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

from understudy import Client
from understudy.adapters.operator_tokens import known_token
from understudy.adapters.ports import free_ports
from understudy.client import InvalidInput
from understudy.worker.runtimes import make_runtime

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples" / "bring-your-own"
PYTORCH = ROOT / "build" / "pytorch" / "bin" / "python"  # `make pytorch` makes it
APPS = {
    "onnx-file": "digits",
    "sklearn-pipeline": "progression",
    "xgboost-model": "tumour",
    "pytorch-module": "images",
    "text-embedding": "passages",
}
PIP_TIMEOUT_S = 240
SCRIPT_TIMEOUT_S = 240
DEPLOY_TIMEOUT_S = 240
TIMEOUT_S = 60
ROWS = 3
ANSWERS = 10  # before and after a worker is killed

Arrays = dict[str, np.ndarray[Any, Any]]


class Workplace:
    """A copy of the examples, trained, and the cluster that they are deployed to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._packages = folder / "packages"
        self._wheels = folder / "wheels"
        self._environment = {**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self._wheels)}
        http, control = free_ports(2)
        self.http = f"http://127.0.0.1:{http}"
        self._control = f"http://127.0.0.1:{control}"
        shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True, symlinks=True)
        file = folder / "CLUSTER.toml"
        file.write_text(file.read_text().replace(":8080", f":{http}").replace(":8090", f":{control}"))

    def fetch_wheels(self) -> None:
        """Those that pip may have from here on."""
        lock = ["--require-hashes", "--only-binary=:all:", f"--requirement={ROOT / 'locks' / 'examples.txt'}"]
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(self._wheels), *lock]
        done = self._ran(pip, PIP_TIMEOUT_S, PIP_NO_INDEX="0")
        if done.returncode:
            pytest.skip(f"pip can't have the packages of the examples: {done.stderr[-500:]}")

    def install(self, *examples: str) -> None:
        """What is needed to train them, beside what the tests have."""
        files = [f"--requirement={self.folder / example / 'requirements.txt'}" for example in examples]
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(self._packages), *files]
        done = self._ran(pip, PIP_TIMEOUT_S)
        assert done.returncode == 0, done.stderr

    def python(self, *arguments: str, executable: str = sys.executable) -> str:
        """What a script prints that has the packages of the examples."""
        paths = {"PYTHONPATH": str(self._packages)} if executable == sys.executable else {}
        done = self._ran([executable, *arguments], SCRIPT_TIMEOUT_S, **paths, OMP_NUM_THREADS="1")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def understudy(self, *arguments: str) -> str:
        """What a command prints that speaks to the cluster."""
        command = [sys.executable, "-m", "understudy", *arguments]
        access = {"UNDERSTUDY_URL": self._control, "UNDERSTUDY_GATEWAY": self.http}
        done = self._ran(command, DEPLOY_TIMEOUT_S, **access)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def deploy(self, example: str) -> None:
        self.understudy("deploy", f"{example}/APP.toml")
        self.until_protected(APPS[example])

    def replicas(self, app: str) -> list[dict[str, Any]]:
        """Those that are ready, the one that is asked first."""
        token = {"Authorization": f"Bearer {known_token(self._control)}"}
        with urlopen(Request(f"{self.http}/understudy/status", headers=token), timeout=TIMEOUT_S) as answer:
            apps = {each["name"]: each for each in json.load(answer)["apps"]}
        ready = [r for r in apps[app]["replicas"] if r["state"] == "ready" and r["connected"]]
        return sorted(ready, key=lambda replica: replica["role"] != "primary")

    def until_protected(self, app: str, without: int = 0) -> None:
        """Wait until replicas are ready on both nodes, and the process `without` isn't one of them."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            found = self.replicas(app)
            if len({r["node"] for r in found}) == 2 and without not in {r["pid"] for r in found}:
                return
            time.sleep(0.05)
        raise AssertionError(f"{app} isn't protected: {self.replicas(app)}")

    def _ran(self, command: list[str], timeout_s: float, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**self._environment, **more},
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    place = Workplace(tmp_path_factory.mktemp("bring-your-own"))
    place.fetch_wheels()
    with running(place.folder / "CLUSTER.toml"):
        yield place


class Deployed(NamedTuple):
    """An app, a question, and what it is to be answered."""

    place: Workplace
    app: str
    inputs: Any
    output: str
    expected: np.ndarray[Any, Any]
    printed: str  # by what trained or measured it

    def check_answer(self, client: Client, variant: str = "") -> None:
        asked_s = time.monotonic()
        answer = client.infer(self.app, self.inputs)
        took_s = time.monotonic() - asked_s
        if variant:
            assert answer.variant == variant
        assert answer.degraded in (None, "failover"), f"{answer.degraded} after {took_s:.2f} s"
        found = answer.outputs[self.output]
        assert found.shape == self.expected.shape
        if answer.degraded is None:
            np.testing.assert_allclose(found, self.expected, rtol=1e-4, atol=1e-5)

    def check_accuracies(self) -> None:
        """The manifest declares what was measured."""
        example = next(example for example, app in APPS.items() if app == self.app)
        manifest = tomllib.loads((EXAMPLES / example / "APP.toml").read_text())
        printed = [float(figure) for figure in re.findall(r"(?:accuracy|R2) ([\d.]+)", self.printed)]
        assert [variant["accuracy"] for variant in manifest["variants"]] == pytest.approx(printed, abs=0.01)

    def survives(self, variant: str) -> None:
        """The worker that serves it dies while it is asked: everybody is answered, and it comes back."""
        victim = self.place.replicas(self.app)[0]
        assert victim["variant"] == variant

        def ask(calls: Calls) -> None:
            with Client(self.place.http) as client:
                calls.repeat(lambda: self.check_answer(client))

        with calling(ask) as (asking,):
            while len(asking.answered) < ANSWERS and asking.thread.is_alive():
                time.sleep(0.02)
            os.kill(victim["pid"], signal.SIGKILL)
            killed_s = time.monotonic()
            self.place.until_protected(self.app, without=victim["pid"])
            while asking.since(killed_s) < ANSWERS and asking.thread.is_alive():
                time.sleep(0.02)
        assert asking.failure is None, asking.failure


@pytest.fixture(scope="module")
def onnx_file(workplace: Workplace) -> Deployed:
    printed = workplace.python("onnx-file/train.py")
    workplace.deploy("onnx-file")
    images = load_digits().data[:ROWS].astype(np.float32)
    session = onnxruntime.InferenceSession(workplace.folder / "onnx-file" / "digits-l.onnx")
    (expected,) = session.run(["probabilities"], {"X": images})
    return Deployed(workplace, "digits", images, "probabilities", expected, printed)


@pytest.fixture(scope="module")
def sklearn_pipeline(workplace: Workplace) -> Deployed:
    printed = workplace.python("sklearn-pipeline/train.py")
    workplace.deploy("sklearn-pipeline")
    frame = load_diabetes(as_frame=True, scaled=False).data[:ROWS]
    frame["sex"] = frame["sex"].map({1.0: "f", 2.0: "m"})
    pickled = workplace.folder / "sklearn-pipeline" / "model" / "all-columns.pkl"
    expected = pickle.loads(pickled.read_bytes()).predict(frame)[:, None]
    return Deployed(workplace, "progression", frame, "progression", expected, printed)


@pytest.fixture(scope="module")
def packages(workplace: Workplace) -> None:
    workplace.install("xgboost-model", "text-embedding")


XGBOOST_ALONE = """
import json, numpy, sys, xgboost
model = xgboost.XGBClassifier()
model.load_model("xgboost-model/boosted/model.ubj")
print(json.dumps(model.predict_proba(numpy.array(json.loads(sys.argv[1]), "float32"))[:, 1:].tolist()))
"""


@pytest.fixture(scope="module")
def xgboost_model(workplace: Workplace, packages: None) -> Deployed:
    printed = workplace.python("xgboost-model/train.py")
    workplace.deploy("xgboost-model")
    rows = load_breast_cancer().data[:ROWS].astype(np.float32)
    expected = np.array(json.loads(workplace.python("-c", XGBOOST_ALONE, json.dumps(rows.tolist()))))
    return Deployed(workplace, "tumour", rows, "malignant", expected, printed)


EMBEDDING_ALONE = """
import json, pathlib, sys, wordllama
inside = pathlib.Path(wordllama.__file__).parent
model = wordllama.WordLlama.load(cache_dir=inside, disable_download=True)
passages = pathlib.Path("text-embedding/passages.txt").read_text().splitlines()
best = [model.rank(question, passages)[0][0] for question in json.loads(sys.argv[1])]
print(json.dumps([[passages.index(passage)] for passage in best]))
"""


@pytest.fixture(scope="module")
def text_embedding(workplace: Workplace, packages: None) -> Deployed:
    printed = workplace.python("text-embedding/measure.py")
    workplace.deploy("text-embedding")
    questions = ["Do you have wifi?", "My membership card was stolen, what now?", "storytelling for toddlers"]
    expected = np.array(json.loads(workplace.python("-c", EMBEDDING_ALONE, json.dumps(questions))))
    given = {"question": np.array([[question] for question in questions], dtype=object)}
    return Deployed(workplace, "passages", given, "passage", expected, printed)


PYTORCH_ALONE = """
import json, sys, torch
weights = torch.load("pytorch-module/net/weights.pt")
image = torch.tensor(json.loads(sys.argv[1]))
seen = torch.nn.functional.conv2d(image, weights["0.weight"], weights["0.bias"], padding=1)
seen = torch.nn.functional.max_pool2d(seen.relu(), 2).flatten(1)
print(json.dumps((seen @ weights["4.weight"].T + weights["4.bias"]).tolist()))
"""


@pytest.fixture(scope="module")
def pytorch_module(workplace: Workplace) -> Deployed:
    if not PYTORCH.exists():
        pytest.skip("there is no PyTorch; `make pytorch` installs it into build/pytorch")
    manifest = workplace.folder / "pytorch-module" / "APP.toml"
    manifest.write_text(manifest.read_text().replace("/opt/pytorch/bin/python", str(PYTORCH)))
    printed = workplace.python("pytorch-module/train.py", executable=str(PYTORCH))
    workplace.deploy("pytorch-module")
    images = load_digits().images[:ROWS, None].astype(np.float32)
    alone = workplace.python("-c", PYTORCH_ALONE, json.dumps(images.tolist()), executable=str(PYTORCH))
    return Deployed(workplace, "images", images, "scores", np.array(json.loads(alone)), printed)


def asked_and_struck(deployed: Deployed, variant: str) -> None:
    deployed.check_accuracies()
    with Client(deployed.place.http) as client:
        deployed.check_answer(client, variant)
    deployed.survives(variant)


def test_an_onnx_file(onnx_file: Deployed):
    asked_and_struck(onnx_file, "digits-l")


def test_a_pickled_pipeline_that_takes_a_data_frame(sklearn_pipeline: Deployed):
    asked_and_struck(sklearn_pipeline, "all-columns")


def test_xgboost_with_packages_of_its_own(xgboost_model: Deployed):
    asked_and_struck(xgboost_model, "boosted")


def test_a_pytorch_module_in_an_interpreter_of_its_own(pytorch_module: Deployed):
    asked_and_struck(pytorch_module, "net")


def test_a_tokenizer_and_embeddings_with_packages_of_their_own(text_embedding: Deployed):
    asked_and_struck(text_embedding, "embedding")


def test_files_without_a_manifest_get_the_one_that_the_page_shows(onnx_file: Deployed):
    place = onnx_file.place
    files = ["onnx-file/digits-l.onnx", "onnx-file/digits-s.onnx"]
    place.understudy("deploy", *files, "--name", "bare", "--save", "onnx-file/BARE.toml")
    written = tomllib.loads((place.folder / "onnx-file" / "BARE.toml").read_text())
    kept = tomllib.loads((EXAMPLES / "onnx-file" / "APP.toml").read_text())
    for variants in (written["variants"], kept["variants"]):
        for variant in variants:
            del variant["accuracy"]
    assert written["variants"] == kept["variants"]
    with Client(place.http) as client:
        found = client.infer("bare", onnx_file.inputs).outputs["probabilities"]
    np.testing.assert_allclose(found, onnx_file.expected, rtol=1e-4, atol=1e-5)


def test_what_the_model_refuses_is_refused_in_its_words(sklearn_pipeline: Deployed):
    with Client(sklearn_pipeline.place.http) as client:
        with pytest.raises(InvalidInput, match="sex: f or m, not 'x'"):
            client.infer("progression", sklearn_pipeline.inputs.assign(sex="x"))
        sklearn_pipeline.check_answer(client, "all-columns")


def test_an_understudy_without_its_leads_packages(workplace: Workplace, packages: None):
    """Asked by itself, since a cluster with so much room keeps a copy of the lead instead."""
    workplace.python("xgboost-model/train.py")
    tumours = load_breast_cancer()
    linear = make_runtime("python", threads=1)
    linear.load(str(workplace.folder / "xgboost-model" / "linear"), {})
    found = linear.predict({"measurements": tumours.data.astype(np.float32)})["malignant"]
    assert np.mean((found[:, 0] > 0.5) == (tumours.target == 0)) > 0.95


def test_the_command_lines_of_the_page(onnx_file: Deployed):
    """As they stand, but for the ports and the plan's own words."""
    row = load_digits().data[0].astype(int).tolist()
    said = onnx_file.place.understudy("infer", "digits", "--data", json.dumps([row]))
    assert "digits-l" in said
    status = json.loads(onnx_file.place.understudy("status", "--json"))
    digits = next(app for app in status["apps"] if app["name"] == "digits")
    assert digits["replicas"][0]["pid"] in {r["pid"] for r in onnx_file.place.replicas("digits")}
    assert re.search(r"^digits .* warm ", onnx_file.place.understudy("plan"), re.MULTILINE)
    assert "row by row" in onnx_file.place.understudy("plan", "--explain", "digits")
