"""An inference endpoint wrapped in place: the model is verified before it is unpickled, and each answer is an event.

    python examples/inference_service.py models:/m-... CERTIFICATE KEY [PORT]

Serves TLS 1.3 only. With the development CA: see docs/tutorials/first-run.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import mlflow
import numpy as np

import securemfg
from securemfg.transport.contexts import server_context
from securemfg.transport.servers import JsonServer


def serving(model_uri: str, certificate: Path, key: Path, port: int = 0) -> JsonServer:
    """A server that answers {"rows": [[...], ...]} with the model's predictions."""
    with securemfg.step("inference", name="load press-failure", sensitivity="confidential"):
        model = mlflow.pyfunc.load_model(model_uri)

    @securemfg.step("inference", name="predict press-failure", sensitivity="confidential")
    def predict(_: str, body: object) -> object:
        if not isinstance(body, dict) or "rows" not in body:
            raise ValueError('expected {"rows": [[...], ...]}')
        rows = np.asarray(body["rows"], dtype=float)
        securemfg.current().audit("model.predicted", resource=model_uri, kind="model", detail={"rows": len(rows)})
        return {"predictions": model.predict(rows).tolist()}

    return JsonServer(predict, server_context(certificate, key), port=port)


if __name__ == "__main__":
    uri, certificate, key, *rest = sys.argv[1:]
    with serving(uri, Path(certificate), Path(key), int(rest[0]) if rest else 8443) as server:
        print(f"serving {uri} at {server.url}; Ctrl-C ends it")
        try:
            while True:
                input()
        except (KeyboardInterrupt, EOFError):
            pass
