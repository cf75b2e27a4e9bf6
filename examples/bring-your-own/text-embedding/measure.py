"""How often each variant finds the right passage for the questions, none of which it has seen."""

import importlib.util
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent

rows = [line.split("\t") for line in (HERE / "questions.txt").read_text().splitlines()]
right = np.array([[int(passage)] for passage, _ in rows])
questions = np.array([[question] for _, question in rows], dtype=object)

for variant in ("embedding", "letters"):
    spec = importlib.util.spec_from_file_location(variant, HERE / variant / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.Model()
    model.load(HERE / variant)
    answer = model.predict({"question": questions})
    print(f"{variant}: accuracy {np.mean(answer['passage'] == right):.3f}")
