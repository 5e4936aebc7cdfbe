"""File to file with a local key, against a plain copy loop: wall time and memory. One process per run, interleaved.

Target: 1 GiB with durable=False within 1.5x of the copy, peak memory at most 64 MiB above the interpreter.

    python bench_files.py [MEBIBYTES] [ROUNDS]
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

from measuring import Spread, child, interleaved, keep, table

MEASURE = (
    "import json, sys, time\n"
    "source, target, key = sys.argv[1:4]\n"
    "{setup}\n"
    "t0 = time.perf_counter(); c0 = time.process_time()\n"
    "{work}\n"
    "wall, cpu = time.perf_counter() - t0, time.process_time() - c0\n"
    "rss = next(int(l.split()[1]) * 1024 for l in open('/proc/self/status') if l.startswith('VmHWM'))\n"
    "print(json.dumps({{'wall': wall, 'cpu': cpu, 'rss': rss}}))"
)
COPY = MEASURE.format(
    setup="buffer = bytearray(1 << 20); view = memoryview(buffer)",
    work="with open(source, 'rb', buffering=0) as a, open(target, 'wb', buffering=0) as b:\n"
    "    while n := a.readinto(buffer): b.write(view[:n])",
)
ENCRYPT = MEASURE.format(
    setup="from securemfg.encryption import encrypt_file, open_key; key = open_key('local:' + key)",
    work="encrypt_file(source, target, key=key, durable=False)",
)
DECRYPT = MEASURE.format(
    setup="from securemfg.encryption import decrypt_file, open_key; key = open_key('local:' + key)",
    work="decrypt_file(source, target, key=key, durable=False)",
)
NOTHING = MEASURE.format(setup="", work="pass")


def main() -> None:
    size = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 7
    from securemfg.encryption import create_local_key, encrypt_file

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        key = folder / "bench.key"
        create_local_key(key)
        plain, message, target = folder / "plain", folder / "message", folder / "target"
        block = os.urandom(1 << 20)
        with plain.open("wb") as file:
            for _ in range(size):
                file.write(block)
        encrypt_file(plain, message, key=f"local:{key}", durable=True)

        def run(code: str, source: Path) -> dict[str, float]:
            target.unlink(missing_ok=True)
            os.sync()  # what the run before left to the disk is not this one's
            return child(code, str(source), str(target), str(key))

        variants = {
            "copy": lambda: run(COPY, plain),
            "encrypt": lambda: run(ENCRYPT, plain),
            "decrypt": lambda: run(DECRYPT, message),
        }
        interleaved(variants, 1)  # warm the page cache
        results = interleaved(variants, rounds)
    floor = child(NOTHING, "-", "-", "-")["rss"]  # not ru_maxrss: that starts with the parent's
    wall = {name: Spread([r["wall"] for r in runs]) for name, runs in results.items()}
    cpu = {name: Spread([r["cpu"] for r in runs]) for name, runs in results.items()}
    memory = {name: max(r["rss"] for r in runs) - floor for name, runs in results.items()}
    table(
        f"{size} MiB, file to file, durable=False, {rounds} rounds (min / median / max)",
        ("what", "x copy", "target", "wall s", "cpu s", "MiB above interpreter"),
        [
            (
                name,
                f"{wall[name].median / wall['copy'].median:.2f}",
                "1.50" if name != "copy" else "-",
                wall[name].shown(1, 3),
                cpu[name].shown(1, 3),
                f"{memory[name] / 2**20:.0f}",
            )
            for name in results
        ],
    )
    keep(
        "files",
        {
            "mebibytes": size,
            **{
                name: {
                    "wall_seconds": wall[name].plain(),
                    "cpu_seconds": cpu[name].plain(),
                    "bytes_above": memory[name],
                }
                for name in results
            },
        },
    )


if __name__ == "__main__":
    main()
