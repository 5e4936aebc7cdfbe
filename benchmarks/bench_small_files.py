"""Small files with one opened key: CPU of a 4 KiB file, and a folder of 1,000 files of 100 KiB.

Targets: a file of 4 KiB costs at most 400 us of CPU each way, as a mean over many in one process after a warm-up, with
durable=False; 1,000 files of 100 KiB reach at least 0.6x of the copy's throughput, by a ThreadPoolExecutor of two
threads, as a user would do it, and by one thread. `copy` opens, reads, writes and closes, with no rename.
"""

from __future__ import annotations

import filecmp
import importlib.util
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import bench_files
import bench_peers
from measuring import (
    Spread,
    Work,
    answer,
    disturbed,
    filesystem,
    interleaved,
    keep,
    options,
    own,
    remove,
    spreads,
    table,
    verdict,
)

SMALL = 4 << 10  # bytes
COUNT = 2000  # files of 4 KiB per run, a tenth of it for the slow peers
SLOW = ("official SDK", "tink")
MANY = 1000
EACH = 100 << 10  # bytes
TURNS = 5

# -- operations --------------------------------------------------------------------------------------------------------

ONE: dict[str, Callable[..., Work]] = {
    "copy": bench_files.copy,
    **{
        name: operation
        for name, operation in bench_peers.OPERATIONS.items()
        if name.startswith(("encrypt ", "decrypt ")) and "S3" not in name
    },
}


def again_and_again(name: str, source: str, target: str, key: str, count: str) -> Work:
    """CPU and wall seconds of one small file, as the mean over `count` after a warm-up."""
    once = ONE[name](source, target, key)
    repeats = int(count)
    for _ in range(repeats // 5):
        once()

    def work() -> dict[str, float]:
        wall, cpu = time.perf_counter(), time.process_time()
        for _ in range(repeats):
            once()
        return {
            "each": (time.process_time() - cpu) / repeats,
            "each_wall": (time.perf_counter() - wall) / repeats,
        }

    return work


def folders_of_files(plain: str, message: str, target: str, key: str, threads: str) -> Work:
    """Copy, encrypt and decrypt a folder of files in turn, `TURNS` times after a rehearsal, in this one process.

    One process for all three: what a small file costs in the kernel (journal, free lists, memory of a virtual machine)
    drifts by a factor of four between processes that are started seconds apart, more than what is compared.
    """
    from securemfg.encryption import decrypt_file, encrypt_file, open_key

    opened = open_key(f"local:{key}")

    def copy(source: Path) -> None:
        with open(source, "rb", buffering=0) as reader, open(Path(target) / source.name, "wb", buffering=0) as writer:
            while part := reader.read(1 << 20):
                writer.write(part)

    def encrypt(source: Path) -> None:
        encrypt_file(source, Path(target) / source.name, key=opened, durable=False)

    def decrypt(source: Path) -> None:
        decrypt_file(source, Path(target) / source.name, key=opened, durable=False)

    cases = {name: (one, sorted(Path(of).iterdir())) for name, one, of in (
        ("copy", copy, plain), ("encrypt", encrypt, plain), ("decrypt", decrypt, message)
    )}  # fmt: skip

    def once(one: Callable[[Path], None], paths: list[Path]) -> tuple[float, float]:
        remove(Path(target))
        wall, cpu = time.perf_counter(), time.process_time()
        if int(threads) == 1:
            for path in paths:
                one(path)
        else:
            with ThreadPoolExecutor(int(threads)) as pool:
                for _ in pool.map(one, paths):
                    pass
        return time.perf_counter() - wall, time.process_time() - cpu

    for case in cases.values():
        once(*case)

    def work() -> dict[str, float]:
        spent: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
        for _ in range(TURNS):
            for name, case in cases.items():
                spent[name].append(once(*case))
        figures = {}
        for name, runs in spent.items():
            figures[name] = statistics.median(wall for wall, _ in runs)
            figures[f"{name} cpu"] = statistics.median(cpu for _, cpu in runs)
        return figures

    return work


OPERATIONS: dict[str, Callable[..., Work]] = {"one": again_and_again, "many": folders_of_files}

# -- runs --------------------------------------------------------------------------------------------------------------


def small_files(folder: Path, key: Path, rounds: int) -> dict[str, list[dict[str, Any]]]:
    plain, target = folder / "plain", folder / "target"
    plain.write_bytes(bytes(range(256)) * (SMALL // 256))
    peers = [
        peer
        for peer in ("ours", *bench_peers.NEEDED)
        if peer == "ours" or importlib.util.find_spec(bench_peers.NEEDED[peer])
    ]

    def run(name: str, source: Path, to: Path, count: int) -> Any:
        return own(__file__, "one", name, source, to, key, count)

    variants: dict[str, Callable[[], Any]] = {"copy": lambda: run("copy", plain, target, COUNT)}
    for peer in peers:
        sealed = folder / f"message {peer}"
        count = COUNT // 10 if peer in SLOW else COUNT
        run(f"encrypt {peer}", plain, sealed, 1)
        run(f"decrypt {peer}", sealed, target, 1)
        if not filecmp.cmp(plain, target, shallow=False):
            raise SystemExit(f"{peer}: what was decrypted is not what was encrypted")
        variants[f"encrypt {peer}"] = lambda p=peer, n=count: run(f"encrypt {p}", plain, target, n)
        variants[f"decrypt {peer}"] = lambda p=peer, s=sealed, n=count: run(f"decrypt {p}", s, target, n)
    return interleaved(variants, rounds)


def many_files(folder: Path, key: Path, rounds: int) -> dict[str, list[dict[str, Any]]]:
    plain, message, target = folder / "plain", folder / "message", folder / "target"
    block = bytes(range(256)) * (EACH // 256)
    for place in (plain, message):
        place.mkdir()
    for index in range(MANY):
        (plain / f"{index:04}").write_bytes(index.to_bytes(8) + block[8:])

    target.mkdir()
    from securemfg.encryption import decrypt_file, encrypt_file

    for path in plain.iterdir():
        encrypt_file(path, message / path.name, key=f"local:{key}", durable=False)
        decrypt_file(message / path.name, target / path.name, key=f"local:{key}", durable=False)
    if filecmp.cmpfiles(plain, target, [path.name for path in plain.iterdir()], shallow=False)[1:] != ([], []):
        raise SystemExit("what was decrypted is not what was encrypted")
    return interleaved(
        {
            "2 threads": lambda: own(__file__, "many", plain, message, target, key, 2),
            "1 thread": lambda: own(__file__, "many", plain, message, target, key, 1),
        },
        rounds,
    )


def main() -> None:
    if answer(OPERATIONS):
        return
    chosen = options(__doc__, rounds=9).parse_args()
    from securemfg.encryption import create_local_key

    with tempfile.TemporaryDirectory(dir=chosen.folder) as name:
        folder = Path(name)
        key = folder / "bench.key"
        create_local_key(key)
        places = [folder / part for part in ("one", "many")]
        for place in places:
            place.mkdir()
        one = small_files(places[0], key, chosen.rounds)
        many = many_files(places[1], key, chosen.rounds)
        kind = filesystem(folder)
    cpu, wall = spreads(one, "each"), spreads(one, "each_wall")
    ours = {name: cpu["decrypt ours" if name.startswith("decrypt") else "encrypt ours"].median for name in one}
    table(
        f"a file of {SMALL >> 10} KiB on {kind}, mean of {COUNT} in one process, {chosen.rounds} rounds "
        "(min / median / max)",
        ("what", "x ours", "of its target", "target", "cpu us", "wall us"),
        [
            (
                name,
                f"{cpu[name].median / ours[name]:.2f}",
                f"{cpu[name].median / 400e-6:.2f}" if name.endswith("ours") else "-",
                verdict(cpu[name].median * 1e6, 400) + " us" if name.endswith("ours") else "-",
                cpu[name].shown(1e6, 0),
                wall[name].shown(1e6, 0),
            )
            for name in one
        ],
    )
    rows = []
    folders: dict[str, dict[str, Any]] = {}
    for threads, runs in many.items():
        for verb in ("copy", "encrypt", "decrypt"):
            spent, used = (Spread([run[verb + what] for run in runs]) for what in ("", " cpu"))
            ratio = Spread([run["copy"] / run[verb] for run in runs])
            folders[f"{MANY} files, {verb}, {threads}"] = {
                "of_copy_throughput": ratio.plain(),
                "wall_seconds": spent.plain(),
                "cpu_seconds": used.plain(),
            }
            rows.append(
                (
                    f"{verb}, {threads}",
                    ratio.shown(1, 2),
                    "-" if verb == "copy" else verdict(ratio.median, 0.6, at_least=True),
                    f"{MANY * EACH / spent.median / 1e6:.0f}",
                    spent.shown(1, 3),
                    used.shown(1, 3),
                )
            )
    table(
        f"{MANY} files of {EACH >> 10} KiB on {kind}, {chosen.rounds} processes of {TURNS} turns (min / median / max)",
        ("what", "of the copy's throughput", "target", "MB/s", "wall s", "cpu s"),
        rows,
    )
    print(disturbed(one, many))
    keep(
        f"small_files-{kind}",
        {
            "file_system": kind,
            **{
                f"4 KiB, {name}": {"cpu_seconds": cpu[name].plain(), "wall_seconds": wall[name].plain()} for name in one
            },
            **folders,
        },
    )


if __name__ == "__main__":
    main()
