"""Training as a plant's ML engineer writes it: plain MLflow and scikit-learn, plus one decorator.

python examples/training.py
"""

from __future__ import annotations

import mlflow
import numpy as np
from sklearn.linear_model import LogisticRegression

import securemfg
from securemfg import Stage


@securemfg.step(Stage.TRAINING, sensitivity="confidential", role="MLResearcher")
def train(rows: int = 400) -> str:
    draw = np.random.default_rng(7)
    features = draw.normal(size=(rows, 3))
    target = (features[:, 0] + 0.5 * features[:, 1] > 0.4).astype(int)
    with mlflow.start_run():
        model = LogisticRegression().fit(features, target)
        mlflow.log_metric("accuracy", float(model.score(features, target)))
        mlflow.log_text("coefficients: " + ", ".join(f"{c:.2f}" for c in model.coef_[0]), "notes.txt")
        info = mlflow.sklearn.log_model(model, name="press-failure", pip_requirements=["scikit-learn"])
    return str(info.model_uri)


if __name__ == "__main__":
    print(train())
