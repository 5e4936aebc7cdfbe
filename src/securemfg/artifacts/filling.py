"""Filling a folder with what is downloaded, out of sight until all of it was verified."""

from __future__ import annotations

import os
import posixpath
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from securemfg import context
from securemfg.encryption.frames import PARALLEL_FROM, run_shared, workers_for
from securemfg.encryption.records import FOLDER


class Listed(Protocol):
    """What MLflow tells of a file or folder: its path in the store, and the bytes that are stored."""

    path: str
    is_dir: bool
    file_size: int | None


def fill(
    folder: Path,
    path: str,
    listing: Callable[[str | None], Iterable[Listed]],
    take: Callable[[str, Path], None],
) -> Path:
    """`take` every file below `path` of a local store into `folder`; where they are. Raises what `take` raises first.

    Small files go beside each other, then each large one with all cores: MLflow's way, a thread for each file, has
    them compete.
    """
    found: list[tuple[int, str]] = []
    waiting = [path]
    for current in waiting:
        Path(folder, current).mkdir(parents=True, exist_ok=True)
        for info in listing(current or None):
            if posixpath.basename(info.path) == FOLDER:
                continue
            if info.is_dir:
                waiting.append(info.path)
            else:
                found.append((info.file_size or 0, info.path))
    found.sort()
    small = [one for one in found if one[0] < PARALLEL_FROM]

    @context.carry
    def work(draw: Callable[[], int | None]) -> None:
        while (index := draw()) is not None:
            take(small[index][1], folder)

    run_shared(work, len(small), workers_for(sum(size for size, _ in small)))
    for _, large in found[len(small) :]:
        take(large, folder)
    return Path(folder, path)


def move_into(folder: Path, target: Path) -> None:
    """Move everything below `folder` into `target`, over what is there, and remove `folder`."""
    for current, folders, files in os.walk(folder):
        relative = Path(current).relative_to(folder)
        for name in folders:
            (target / relative / name).mkdir(exist_ok=True)
        for name in files:
            os.replace(Path(current, name), target / relative / name)
    shutil.rmtree(folder, ignore_errors=True)
