"""Demo, first script: gets milling-machine data, in a step that may lease the feature database's credential.

    python ingest.py OUT.csv [--data REAL.csv] [--rows N]

The columns are those of AI4I 2020 (S. Matzka, UCI repository 601); made data follows the failure rules it describes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pandas as pd

import securemfg


def make(rows: int, seed: int = 2020) -> pd.DataFrame:
    """Seeded sensor data: `rows` machining operations with their failures."""
    draw = np.random.default_rng(seed)
    kind = draw.choice(["L", "M", "H"], rows, p=[0.6, 0.3, 0.1])
    air = 300 + np.clip(np.cumsum(draw.normal(0, 0.05, rows)), -5, 5) + draw.normal(0, 0.5, rows)
    process = air + 10 + draw.normal(0, 1.0, rows)
    speed = np.clip(draw.gamma(9.0, 45.0, rows) + 1150, 1168, 2886).round()
    torque = np.clip(draw.normal(40, 10, rows), 3.8, 76.6)
    wear = (np.arange(rows) * 7 + draw.integers(0, 5, rows)) % 253
    power = torque * speed * 2 * np.pi / 60  # W
    limit = pd.Series(kind).map({"L": 11000, "M": 12000, "H": 13000}).to_numpy()
    causes = {
        "TWF": (wear > 200) & (draw.random(rows) < 0.05),
        "HDF": (process - air < 8.6) & (speed < 1380),
        "PWF": (power < 3500) | (power > 9000),
        "OSF": wear * torque > limit,
        "RNF": draw.random(rows) < 0.001,
    }
    failed = np.any(list(causes.values()), axis=0)
    return pd.DataFrame(
        {
            "UDI": np.arange(1, rows + 1),
            "Product ID": [f"{letter}{47180 + number}" for number, letter in enumerate(kind)],
            "Type": kind,
            "Air temperature [K]": air.round(1),
            "Process temperature [K]": process.round(1),
            "Rotational speed [rpm]": speed.astype(int),
            "Torque [Nm]": torque.round(1),
            "Tool wear [min]": wear,
            "Machine failure": failed.astype(int),
            **{name: cause.astype(int) for name, cause in causes.items()},
        }
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rows", type=int, default=10_000)
    given = parser.parse_args()
    vault = json.loads(os.environ.get("DEMO_VAULT", "{}"))
    credentials = ["features-db"] if vault else []
    workflow = securemfg.Workflow.from_config(overrides={"catalog": "data_flow.yaml", **vault})
    assets = ["production_sensor_data"]
    with workflow.step("ingest", name="ingest", assets=assets, role="DataEngineer", credentials=credentials) as step:
        if credentials:
            database = step.credential("features-db")
            print(f"leased features-db for user {database['username'].reveal()!r}, password {database['password']}")
        if given.data is not None:
            shutil.copyfile(given.data, given.out)
        else:
            make(given.rows).to_csv(given.out, index=False)
        rows = sum(1 for _ in given.out.open()) - 1
        step.audit("data.ingested", resource=given.out.name, kind="dataset", detail={"rows": rows})
    workflow.close()  # here, so that what is leased is revoked while the server still runs
    print(f"{rows} rows of machine data")


if __name__ == "__main__":
    main()
