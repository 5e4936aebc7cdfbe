"""Demo, third script: loads the model back and serves it over TLS 1.3, then asks it for predictions.

python serve.py MODEL_URI DATA.csv CERTIFICATE KEY CA
"""

from __future__ import annotations

import sys
from pathlib import Path

import mlflow
import pandas as pd

import securemfg
from securemfg.transport.contexts import server_context
from securemfg.transport.servers import JsonServer


def main(model_uri: str, data: str, certificate: str, key: str, ca: str) -> None:
    workflow = securemfg.Workflow.from_config(overrides={"tls.ca_file": ca, "catalog": "data_flow.yaml"})
    assets = ["production_sensor_data"]
    with workflow.step("inference", name="serve press-failure", assets=assets, role="OperatorService") as step:
        model = mlflow.pyfunc.load_model(model_uri)
        print("loaded the model: every file verified and decrypted")

        def predict(_: str, body: object) -> object:
            rows = pd.DataFrame(body)
            step.audit("model.predicted", resource="press-failure", kind="model", detail={"rows": len(rows)})
            return model.predict(rows)[:, 1].tolist()

        with JsonServer(predict, server_context(Path(certificate), Path(key))) as server:
            features = list(model.metadata.get_input_schema().input_names())
            rows = pd.read_csv(data, nrows=100)[features].astype(float)
            answer = step.http.post(f"{server.url}/predict", json=rows.to_dict("records"))
            answer.raise_for_status()
            scores = answer.json()
            print(f"{len(scores)} predictions over TLS 1.3; highest failure score {max(scores):.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
