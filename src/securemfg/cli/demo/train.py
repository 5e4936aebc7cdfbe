"""Demo, second script: plain MLflow and scikit-learn, plus one decorator.

python train.py DATA.csv
"""

from __future__ import annotations

import sys

import matplotlib
import mlflow
import pandas as pd
from mlflow.models import infer_signature
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, classification_report, precision_recall_curve
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

import securemfg

matplotlib.use("Agg")
FEATURES = [
    "Air temperature [K]",
    "Process temperature [K]",
    "Rotational speed [rpm]",
    "Torque [Nm]",
    "Tool wear [min]",
]


@securemfg.step("training", sensitivity="confidential", role="MLResearcher")
def train(path: str) -> str:
    data = pd.read_csv(path)
    features, target = data[FEATURES].astype(float), data["Machine failure"]
    seen, held, seen_target, held_target = train_test_split(features, target, stratify=target, random_state=7)
    with mlflow.start_run(run_name="press-failure") as run:
        model = make_pipeline(StandardScaler(), PolynomialFeatures(degree=3), LogisticRegression(max_iter=400))
        model.fit(seen, seen_target)
        scores = model.predict_proba(held)[:, 1]
        precision = average_precision_score(held_target, scores)
        mlflow.log_params({"degree": 3, "max_iter": 400})
        mlflow.log_metric("average_precision", precision)
        print(f"trained: average precision {precision:.3f}")

        mlflow.log_text(classification_report(held_target, scores > 0.5), "report.txt")
        mlflow.log_dict({"features": FEATURES, "failures": int(target.sum())}, "facts.json")
        mlflow.log_table(held.assign(score=scores).head(200).reset_index(drop=True), "scores.json")
        mlflow.log_figure(_curve(held_target, scores), "precision_recall.png")
        importance = permutation_importance(model, held, held_target, n_repeats=2, random_state=7)
        mlflow.log_dict(dict(zip(FEATURES, importance["importances_mean"].tolist(), strict=True)), "importance.json")
        print("logged figures, tables and text")

        info = mlflow.sklearn.log_model(
            model, name="press-failure", signature=infer_signature(held, scores), pip_requirements=["scikit-learn"],
            pyfunc_predict_fn="predict_proba",
        )  # fmt: skip
        print(f"logged the model {info.model_uri} of run {run.info.run_id}")
    return str(info.model_uri)


def _curve(target: pd.Series, scores: object) -> matplotlib.figure.Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 4))
    axes = figure.subplots()
    precision, recall, _ = precision_recall_curve(target, scores)
    axes.plot(recall, precision)
    axes.set(xlabel="recall", ylabel="precision", title="Press failure")
    return figure


if __name__ == "__main__":
    uri = train(sys.argv[1])
    with open("model_uri.txt", "w", encoding="utf-8") as file:
        file.write(uri)
