"""What a step costs: importing and decorating, the first call, and each call after that.

Targets: import and decorate at most 60 ms over a bare interpreter, with none of the heavy libraries; first call of the
embedded default at most 500 ms; a decorated empty call, two events in the fast class, at most 25 us in the median.
"""

from __future__ import annotations

from measuring import Spread, child, interleaved, keep, table

START = "import time, json, sys; t0 = time.perf_counter()\n"
BARE = START + "print(json.dumps({'seconds': time.perf_counter() - t0}))"
IMPORT = START + (
    "import securemfg\n"
    "@securemfg.step('training')\n"
    "def work(): pass\n"
    "seconds = time.perf_counter() - t0\n"
    "heavy = [n for n in ('hvac', 'boto3', 'mlflow', 'httpx', 'structlog', 'pydantic') if n in sys.modules]\n"
    "print(json.dumps({'seconds': seconds, 'heavy': heavy}))"
)
FIRST = (
    "import time, json, securemfg\n"
    "@securemfg.step('training')\n"
    "def work(): pass\n"
    "t0 = time.perf_counter(); work()\n"
    "print(json.dumps({'seconds': time.perf_counter() - t0}))"
)
LOOP = (
    "def timed(call, count=20000):\n"
    "    spent = []\n"
    "    clock = time.perf_counter\n"
    "    for _ in range(2000): call()\n"
    "    for _ in range(count):\n"
    "        t = clock(); call(); spent.append(clock() - t)\n"
    "    spent.sort()\n"
    "    print(json.dumps({'seconds': spent[count // 2], 'p99': spent[count * 99 // 100]}))\n"
)
WARM = "import time, json, securemfg\n" + LOOP + "@securemfg.step('training')\ndef work(): pass\nwork()\ntimed(work)"
LOGGING = (
    "import time, json, logging\n" + LOOP + "logging.basicConfig(filename='x.log', level=20, format='%(message)s')\n"
    "line = json.dumps({'action': 'step.started', 'actor': 'someone', 'detail': 'x' * 330})\n"
    "def work():\n    logging.info(line); logging.info(line)\n"
    "timed(work)"
)


def main() -> None:
    cold = interleaved(
        {"bare": lambda: child(BARE), "import": lambda: child(IMPORT), "first": lambda: child(FIRST)}, rounds=9
    )
    warm = interleaved({"step": lambda: child(WARM), "logging": lambda: child(LOGGING)}, rounds=7)
    bare, imported, first = (Spread([r["seconds"] for r in cold[name]]) for name in ("bare", "import", "first"))
    step, logged = (Spread([r["seconds"] for r in warm[name]]) for name in ("step", "logging"))
    heavy = sorted({name for result in cold["import"] for name in result["heavy"]})
    over = imported.median - bare.median
    table(
        "What a step costs (min / median / max)",
        ("what", "ratio to its target", "figure", "target"),
        [
            (
                "import and decorate, over a bare interpreter",
                f"{over / 0.060:.2f}",
                f"{imported.shown(1e3)} ms",
                "60 ms",
            ),
            ("heavy libraries that it loads", "-", ", ".join(heavy) or "none", "none"),
            ("first call, embedded default", f"{first.median / 0.5:.2f}", f"{first.shown(1e3)} ms", "500 ms"),
            ("decorated empty call, two events", f"{step.median / 25e-6:.2f}", f"{step.shown(1e6)} us", "25 us"),
            (
                "peer: two lines by stdlib logging",
                f"{logged.median / step.median:.2f} of ours",
                f"{logged.shown(1e6)} us",
                "-",
            ),
        ],
    )
    keep(
        "step",
        {
            "import_seconds": imported.plain(),
            "heavy": heavy,
            "first_call_seconds": first.plain(),
            "empty_call_seconds": step.plain(),
            "empty_call_p99_seconds": Spread([r["p99"] for r in warm["step"]]).plain(),
            "logging_two_lines_seconds": logged.plain(),
        },
    )


if __name__ == "__main__":
    main()
