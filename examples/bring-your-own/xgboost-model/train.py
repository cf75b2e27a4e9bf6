"""Is a tumour malignant (scikit-learn's data)? Boosted trees, and a logistic regression as understudy."""

from pathlib import Path

import numpy as np
import xgboost
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).parent

x, y = load_breast_cancer(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(x.astype(np.float32), y == 0, random_state=0)

trees = xgboost.XGBClassifier(n_estimators=200, max_depth=3, learning_rate=0.1)
trees.fit(x_train, y_train)
trees.save_model(HERE / "boosted" / "model.ubj")
print(f"boosted: accuracy {trees.score(x_test, y_test):.3f}")

few = [20, 24, 27]  # worst radius, smoothness and concave points
logistic = make_pipeline(StandardScaler(), LogisticRegression()).fit(x_train[:, few], y_train)
scaler, regression = logistic[0], logistic[1]
weights = regression.coef_[0] / scaler.scale_
bias = regression.intercept_[0] - weights @ scaler.mean_
np.savez(HERE / "linear" / "weights.npz", columns=few, weights=weights, bias=bias)
print(f"linear: accuracy {logistic.score(x_test[:, few], y_test):.3f}")
