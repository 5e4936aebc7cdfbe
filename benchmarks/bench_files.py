"""File to file with a local key, against a plain copy loop: wall time, CPU and memory; ranges of a message.

Targets, on two cores: 1 GiB with durable=False within 1.0x of the copy, with durable=True within 1.15x of the copy
that fsyncs file and folder; peak memory at most 64 MiB above the interpreter, at 4 GiB too (--mebibytes 4096); 1 MiB
out of a message of 1 GiB within 5 ms, warm.
"""

from __future__ import annotations

import filecmp
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import (
    Spread,
    Work,
    answer,
    disturbed,
    filesystem,
    interleaved,
    keep,
    nothing,
    options,
    own,
    remove,
    spreads,
    table,
    verdict,
    write_random,
)

MIB = 1 << 20
RANGES = 200  # reads per run

# -- operations: each prepares, and returns what is timed --------------------------------------------------------------


def copy(source: str, target: str, _key: str, durable: str = "") -> Work:
    buffer = bytearray(MIB)
    view = memoryview(buffer)

    def work() -> None:
        with open(source, "rb", buffering=0) as reader, open(target, "wb", buffering=0) as writer:
            while count := reader.readinto(buffer):
                writer.write(view[:count])
            if durable:
                os.fsync(writer.fileno())
        if durable:
            folder = os.open(Path(target).parent, os.O_RDONLY | os.O_DIRECTORY)
            os.fsync(folder)
            os.close(folder)

    return work


def encrypt(source: str, target: str, key: str, durable: str = "") -> Work:
    from securemfg.encryption import encrypt_file, open_key

    opened = open_key(f"local:{key}")
    return lambda: encrypt_file(source, target, key=opened, durable=bool(durable))


def decrypt(source: str, target: str, key: str, durable: str = "") -> Work:
    from securemfg.encryption import decrypt_file, open_key

    opened = open_key(f"local:{key}")
    return lambda: decrypt_file(source, target, key=opened, durable=bool(durable))


def _reads(read: Callable[[int], object], size: int) -> Work:
    dice = random.Random(7)
    offsets = [dice.randrange(max(1, size - MIB)) for _ in range(RANGES)]  # hardly ever at the start of a frame
    for offset in offsets[: RANGES // 10]:
        read(offset)

    def work() -> dict[str, float]:
        spent = []
        for offset in offsets:
            start = time.perf_counter()
            read(offset)
            spent.append(time.perf_counter() - start)
        spent.sort()
        return {"each": statistics.median(spent), "p99": spent[len(spent) * 99 // 100]}

    return work


def range_opened_each_time(message: str, _target: str, key: str) -> Work:
    from securemfg.encryption import inspect_file, open_key, open_range

    opened = open_key(f"local:{key}")
    size = inspect_file(message).plaintext_length
    return _reads(lambda offset: open_range(message, offset, MIB, key=opened), size)


def range_of_open_message(message: str, _target: str, key: str) -> Work:
    from securemfg.encryption import open_key
    from securemfg.encryption.ranges import MessageFile

    file = MessageFile(message, key=open_key(f"local:{key}"))
    buffer = memoryview(bytearray(MIB))
    return _reads(lambda offset: file.read_range(offset, buffer), file.size)


OPERATIONS: dict[str, Callable[..., Work]] = {
    "nothing": nothing,
    "copy": copy,
    "encrypt": encrypt,
    "decrypt": decrypt,
    "open_range": range_opened_each_time,
    "MessageFile.read_range": range_of_open_message,
}

# -- runs --------------------------------------------------------------------------------------------------------------


def file_rows(results: dict[str, list[dict[str, Any]]], floor: int) -> list[tuple[str, ...]]:
    wall, cpu = spreads(results, "wall"), spreads(results, "cpu")
    rows = []
    for name, runs in results.items():
        durable = name.endswith("fsync")
        ratio = wall[name].median / wall["copy, fsync" if durable else "copy"].median
        above = max(run["rss"] for run in runs) - floor
        ours = not name.startswith("copy")
        rows.append(
            (
                name,
                f"{ratio:.2f}",
                verdict(ratio, 1.15 if durable else 1.0) if ours else "-",
                wall[name].shown(1, 3),
                cpu[name].shown(1, 3),
                f"{above / MIB:.0f}",
                verdict(above / MIB, 64) if ours else "-",
            )
        )
    return rows


def plain_figures(results: dict[str, list[dict[str, Any]]], floor: int) -> dict[str, Any]:
    wall, cpu = spreads(results, "wall"), spreads(results, "cpu")
    return {
        name: {
            "wall_seconds": wall[name].plain(),
            "cpu_seconds": cpu[name].plain(),
            "bytes_above": max(run["rss"] for run in runs) - floor,
        }
        for name, runs in results.items()
    }


def main() -> None:
    if answer(OPERATIONS):
        return
    chosen = options(__doc__, rounds=9, mebibytes=1024).parse_args()
    from securemfg.encryption import create_local_key, encrypt_file

    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        key, plain, message, target = (folder / part for part in ("bench.key", "plain", "message", "target"))
        opened = create_local_key(key)
        write_random(plain, chosen.mebibytes)
        encrypt_file(plain, message, key=opened)

        def run(operation: str, source: Path, durable: str = "") -> dict[str, Any]:
            remove(target)
            result: dict[str, Any] = own(__file__, operation, source, target, key, durable, fresh=target)
            return result

        variants = {
            "copy": lambda: run("copy", plain),
            "encrypt": lambda: run("encrypt", plain),
            "decrypt": lambda: run("decrypt", message),
            "copy, fsync": lambda: run("copy", plain, "durable"),
            "encrypt, fsync": lambda: run("encrypt", plain, "durable"),
            "decrypt, fsync": lambda: run("decrypt", message, "durable"),
        }
        run("decrypt", message)  # also warms the page cache
        if not filecmp.cmp(plain, target, shallow=False):
            raise SystemExit("what was decrypted is not what was encrypted")
        results = interleaved(variants, chosen.rounds)
        remove(target)
        ranges = interleaved(
            {
                "open_range": lambda: own(__file__, "open_range", message, "-", key),
                "MessageFile.read_range": lambda: own(__file__, "MessageFile.read_range", message, "-", key),
            },
            min(5, chosen.rounds),
        )
        kind = filesystem(folder)
    floor = own(__file__, "nothing")["rss"]
    table(
        f"{chosen.mebibytes} MiB, file to file on {kind}, {chosen.rounds} rounds (min / median / max)",
        ("what", "x copy", "target", "wall s", "cpu s", "MiB above interpreter", "target"),
        file_rows(results, floor),
    )
    each = spreads(ranges, "each")
    table(
        f"1 MiB at a random place of {chosen.mebibytes} MiB, warm, medians of {RANGES} reads (min / median / max)",
        ("what", "of its target", "target", "ms", "p99 ms"),
        [
            (
                name,
                f"{each[name].median / 0.005:.2f}",
                verdict(each[name].median * 1e3, 5) + " ms",
                each[name].shown(1e3, 2),
                Spread([run["p99"] for run in runs]).shown(1e3, 2),
            )
            for name, runs in ranges.items()
        ],
    )
    print(disturbed(results, ranges))
    keep(
        f"files-{chosen.mebibytes}-{kind}",
        {
            "mebibytes": chosen.mebibytes,
            "file_system": kind,
            **plain_figures(results, floor),
            **{name: {"each_seconds": spread.plain()} for name, spread in each.items()},
        },
    )


if __name__ == "__main__":
    main()
