"""What the benchmarks share: runs in processes of their own, interleaved; tables with ratios first; a JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
LOAD_BEFORE = os.getloadavg()
CORES = 2  # a run keeps to so many, on machines with more too: the targets are stated for two workers
QUIET = 0.15  # of the machine's CPU: what others may use before and while a run counts
PATIENCE = 20  # seconds to wait for that before each run
BUDGET = 300  # seconds to spend in all on waiting and on runs that others disturbed; then runs count as they come

Work = Callable[[], object]
_spent = [0.0]  # of BUDGET


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
    return _last_line([sys.executable, "-c", code, *arguments], cwd)


def _last_line(command: Sequence[str], cwd: Path | None = None) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SECUREMFG_", "MLFLOW_", "AWS_"))}
        done = subprocess.run(
            command, cwd=cwd or folder, env={**kept, "HOME": folder}, capture_output=True, text=True, check=False
        )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def own(
    script: str, operation: str, *arguments: object, fresh: Path | None = None, python: str = sys.executable
) -> Any:
    """Run one of `script`'s operations in a process of its own: wall and CPU seconds, peak bytes, and its own figures.

    `fresh`: the file or folder that it makes. It is made once and removed before it is made again and measured: a
    virtual machine may hand free memory back to its host within seconds, and to get it again costs several times a
    copy, which would fall on whichever run comes after a pause. What was freed just now is still there.
    """
    command = [python, str(Path(script).resolve()), "--operation", operation, str(fresh or ""), *map(str, arguments)]
    while True:
        os.sync()  # what the run before left to the disk is not this one's
        _wait_for_quiet()
        start = time.monotonic()
        result = _last_line(command)
        if result["others"] <= QUIET or _spent[0] >= BUDGET:  # chosen by what others did, never by the figure itself
            return result
        _spent[0] += time.monotonic() - start


def _busy() -> float:
    """CPU seconds that this machine has spent, all processes and cores together. 0 where there is no /proc."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _idle, _iowait, *interrupts = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(interrupts)) / os.sysconf("SC_CLK_TCK")


def _wait_for_quiet() -> None:
    began = time.monotonic()
    while time.monotonic() - began < min(PATIENCE, BUDGET - _spent[0]):
        busy, start = _busy(), time.monotonic()
        time.sleep(0.25)
        if (_busy() - busy) / (time.monotonic() - start) / (os.cpu_count() or 1) <= QUIET:
            return
        _spent[0] += time.monotonic() - start


def answer(operations: Mapping[str, Callable[..., Work]]) -> bool:
    """Whether this process was started by `own`; then its operation is prepared, measured and printed."""
    if sys.argv[1:2] != ["--operation"]:
        return False
    name, fresh, *arguments = sys.argv[2:]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    work = operations[name](*arguments)
    if fresh:
        work()
        remove(Path(fresh))
    busy, wall, cpu = _busy(), time.perf_counter(), time.process_time()
    figures = work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    others = max(0.0, _busy() - busy - cpu) / max(wall, 1e-3) / (os.cpu_count() or 1)
    # not ru_maxrss: that starts with the parent's
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    own_figures = figures if isinstance(figures, dict) else {}
    print(json.dumps({"wall": wall, "cpu": cpu, "rss": peak * 1024, "others": others, **own_figures}))
    return True


def remove(path: Path) -> None:
    """Remove a file, or what is in a folder, if there is any."""
    if path.is_dir():
        for inside in path.iterdir():
            inside.unlink()
    else:
        path.unlink(missing_ok=True)


def nothing(*_arguments: str) -> Work:
    """An operation that shows what the interpreter alone takes."""
    return lambda: None


def disturbed(*results: Mapping[str, Sequence[Mapping[str, float]]]) -> str:
    """How many of the runs others disturbed after all."""
    runs = [run for result in results for of in result.values() for run in of]
    count = sum(run["others"] > QUIET for run in runs)
    return (
        f"{count} of {len(runs)} runs had other processes use more than {QUIET:.0%} of the CPU; load {os.getloadavg()}"
    )


def spreads(runs: Mapping[str, Sequence[Mapping[str, float]]], figure: str) -> dict[str, Spread]:
    """One figure of every variant's runs."""
    return {name: Spread([run[figure] for run in of]) for name, of in runs.items()}


def interleaved(variants: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[Any]]:
    """Every variant once per round, each round from another one on, so that a slow minute or neighbour hits all."""
    results: dict[str, list[Any]] = {name: [] for name in variants}
    names = list(variants)
    for round_ in range(rounds):
        first = round_ % len(names)
        for name in names[first:] + names[:first]:
            results[name].append(variants[name]())
    return results


def options(text: str | None, *, rounds: int, mebibytes: int | None = None) -> argparse.ArgumentParser:
    """The options that file benchmarks share."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    if mebibytes is not None:
        parser.add_argument("--mebibytes", type=int, default=mebibytes, help="size of the file (%(default)s)")
    parser.add_argument("--rounds", type=int, default=rounds, help="runs of every variant (%(default)s)")
    parser.add_argument(
        "--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the files lie (%(default)s)"
    )
    return parser


def filesystem(folder: Path) -> str:
    """The kind of file system that `folder` lies on, such as ext4 or tmpfs."""
    best, kind = "", "unknown"
    for line in Path("/proc/mounts").read_text().splitlines():
        _device, mount, of, *_ = line.split()
        inside = folder.resolve().is_relative_to(mount)
        if inside and len(mount) >= len(best):
            best, kind = mount, of
    return kind


def write_random(path: Path, mebibytes: int) -> None:
    with path.open("wb") as file:
        for _ in range(mebibytes):
            file.write(os.urandom(1 << 20))


def verdict(value: float, target: float, *, at_least: bool = False) -> str:
    """The target, and whether `value` keeps it."""
    kept = value >= target if at_least else value <= target
    return f"{'>=' if at_least else '<='} {target:g} {'ok' if kept else 'MISSED'}"


def machine() -> dict[str, str]:
    def installed(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "absent"

    names = (
        "cryptography",
        "orjson",
        "pydantic",
        "mlflow",
        "aws-encryption-sdk",
        "tink",
        "pyrage",
    )
    return {
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: installed(name) for name in names},
    }


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    rows = list(rows)
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    print(f"\n{title}")
    for row in (columns, ["-" * width for width in widths], *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def keep(name: str, figures: Mapping[str, Any]) -> None:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    when = datetime.now(UTC).isoformat(timespec="seconds")
    load = {"before": LOAD_BEFORE, "after": os.getloadavg()}  # 1, 5 and 15 minutes; the benchmark's own is in it
    path.write_text(json.dumps({"when": when, "machine": machine(), "load": load, **figures}, indent=2) + "\n")
    print(f"wrote {path}")
