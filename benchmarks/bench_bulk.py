"""Rewrapping 1,000 run keys' records on local keys, as `securemfg artifacts rewrap` does it; small and large artifacts.

Target: at most 2 s, whatever the artifacts weigh.

    python bench_bulk.py [ROUNDS]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from measuring import Spread, child, interleaved, keep, table

PREPARE = """
import json, sys
from pathlib import Path
from securemfg.encryption import create_local_key, open_key
from securemfg.encryption.run_key import create_run_key
place, size = Path(sys.argv[1]), int(sys.argv[2])
for name in ("old", "new"):
    create_local_key(place / f"{name}.key")
key = open_key(f"local:{place}/old.key")
for number in range(1000):
    run_id = f"{number:032x}"
    run_key, record = create_run_key({"default": [key]}, {"securemfg:kind": "run", "securemfg:root": run_id})
    folder = place / "store" / "7" / run_id / "artifacts"
    (folder / ".securemfg" / "keys").mkdir(parents=True)
    (folder / ".securemfg" / "keys" / f"{run_key.key_id}.esdk").write_bytes(record)
    (folder / "model.bin").write_bytes(b"x" * size)
print(json.dumps({}))
"""
REWRAP = """
import json, sys, time
from pathlib import Path
from securemfg.artifacts.bulk import Job, Verb, run
from securemfg.workflow import Workflow
place = Path(sys.argv[1])
Path("securemfg.toml").write_text(
    f'[keys]\\ndefault = "local:{place}/new.key"\\nold = "local:{place}/old.key"\\n'
)
with Workflow.from_config("securemfg.toml") as workflow:
    workflow.audit("warm.up")
    began = time.perf_counter()
    job = Job(verb=Verb.REWRAP, uri=str(place / "store"), rules=workflow.rules, everything=True)
    summary = run(job, emit=workflow.audit)
    wall = time.perf_counter() - began
assert summary.done == 1000 and not summary.failed, summary.failed[:1]
print(json.dumps({"wall": wall}))
"""
SIZES = {"1 KiB": 1 << 10, "1 MiB": 1 << 20}


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        places = {name: Path(folder, str(size)) for name, size in SIZES.items()}
        for name, place in places.items():
            child(PREPARE, str(place), str(SIZES[name]))
        results = interleaved(
            {name: (lambda place=place: child(REWRAP, str(place))) for name, place in places.items()}, rounds
        )
    wall = {name: Spread([run["wall"] for run in runs]) for name, runs in results.items()}
    table(
        f"rewrap of 1,000 run keys' records, local keys, {rounds} rounds (min / median / max)",
        ("artifacts of", "x smallest", "target s", "wall s"),
        [(name, f"{one.median / wall['1 KiB'].median:.2f}", "2.0", one.shown(1, 2)) for name, one in wall.items()],
    )
    keep("bulk", {name: one.plain() for name, one in wall.items()})


if __name__ == "__main__":
    main()
