"""What the benchmarks share: runs in processes of their own, interleaved; tables with ratios first; a JSON file."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


class Spread:
    """Minimum, median and maximum of some runs."""

    def __init__(self, values: Sequence[float]) -> None:
        self.values = sorted(values)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def shown(self, scale: float, digits: int = 1) -> str:
        low, middle, high = (value * scale for value in (self.values[0], self.median, self.values[-1]))
        return f"{low:.{digits}f} / {middle:.{digits}f} / {high:.{digits}f}"

    def plain(self) -> dict[str, float]:
        return {"min": self.values[0], "median": self.median, "max": self.values[-1], "runs": len(self.values)}


def child(code: str, *arguments: str, cwd: Path | None = None) -> dict[str, Any]:
    """Run `code` in a Python of its own, in an empty folder, and return the JSON of its last line."""
    with tempfile.TemporaryDirectory() as folder:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SECUREMFG_", "MLFLOW_", "AWS_"))}
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=cwd or folder, env={**kept, "HOME": folder}, capture_output=True, text=True, check=False,
        )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def interleaved(variants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """Every variant once per round, so that a slow minute hits all of them."""
    results: dict[str, list[Any]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            results[name].append(run())
    return results


def machine() -> dict[str, str]:
    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "absent"

    names = ("cryptography", "orjson", "pydantic", "mlflow")
    return {
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: installed(name) for name in names},
    }


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    print(f"\n{title}")
    for row in (columns, ["-" * width for width in widths], *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def keep(name: str, figures: Mapping[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    when = datetime.now(UTC).isoformat(timespec="seconds")
    path.write_text(json.dumps({"when": when, "machine": machine(), **figures}, indent=2) + "\n")
    print(f"wrote {path}")
