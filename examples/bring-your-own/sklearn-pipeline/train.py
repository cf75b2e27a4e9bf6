"""The progression of diabetes within a year (scikit-learn's data): two pickled pipelines, and their R2."""

import pickle
from pathlib import Path

from sklearn.compose import ColumnTransformer
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

HERE = Path(__file__).parent

x, y = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
x["sex"] = x["sex"].map({1.0: "f", 2.0: "m"})  # which is which isn't documented: a guess
x_train, x_test, y_train, y_test = train_test_split(x, y, random_state=2)

numbers = [name for name in x.columns if name != "sex"]
all_columns = ColumnTransformer([("sex", OneHotEncoder(), ["sex"]), ("numbers", StandardScaler(), numbers)])
three_columns = ColumnTransformer([("numbers", StandardScaler(), ["bmi", "bp", "s5"])])

for name, pipeline in {
    "all-columns": make_pipeline(all_columns, Ridge()),
    "three-columns": make_pipeline(three_columns, Ridge()),
}.items():
    pipeline.fit(x_train, y_train)
    (HERE / "model" / f"{name}.pkl").write_bytes(pickle.dumps(pipeline))
    print(f"{name}.pkl: R2 {pipeline.score(x_test, y_test):.3f}")
