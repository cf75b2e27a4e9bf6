"""Two classifiers of handwritten digits as .onnx files, and their accuracy on digits they never saw."""

from pathlib import Path

import numpy as np
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier

HERE = Path(__file__).parent

x, y = load_digits(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(x.astype(np.float32), y, random_state=0)

for name, model in {
    "digits-l": MLPClassifier((200,), max_iter=60, random_state=0, tol=1e-2),
    "digits-s": LogisticRegression(C=0.01, max_iter=1000),
}.items():
    model.fit(x_train, y_train)
    exported = to_onnx(model, x_train[:1], options={"zipmap": False})
    (HERE / f"{name}.onnx").write_bytes(exported.SerializeToString())
    print(f"{name}.onnx: accuracy {model.score(x_test, y_test):.3f}")
