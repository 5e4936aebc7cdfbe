"""Which versions of records a host has seen: shared by its processes through one file."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from securemfg.artifacts.versions import RecordVersions
from securemfg.encryption.run_key import RunKey
from securemfg.errors import DecryptionError

KEYS = ("a" * 32, "b" * 32)
STEPS = st.tuples(st.integers(0, 2), st.sampled_from(KEYS), st.integers(1, 5))


def run_key(key_id: str, version: int) -> RunKey:
    return RunKey(key_id, bytes(32), {}, groups=("default",), version=version)


@given(steps=st.lists(STEPS, max_size=30))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_one_process_has_seen_every_other_refuses_to_go_back_from(
    steps: list[tuple[int, str, int]], tmp_path: Path
) -> None:
    path = tmp_path / "home" / "records"
    path.unlink(missing_ok=True)
    processes = [RecordVersions(path) for _ in range(3)]
    seen = dict.fromkeys(KEYS, 1)
    for process, key_id, version in steps:
        if version < seen[key_id]:
            with pytest.raises(DecryptionError, match="an older one was put back"):
                processes[process].check(run_key(key_id, version))
        else:
            processes[process].check(run_key(key_id, version))
            seen[key_id] = version
    for key_id, version in seen.items():
        RecordVersions(path).check(run_key(key_id, version))  # a process that starts now
        if version > 1:
            with pytest.raises(DecryptionError, match="an older one was put back"):
                RecordVersions(path).check(run_key(key_id, version - 1))


def test_a_line_that_is_half_written_is_read_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "records"
    ours = RecordVersions(path)
    ours.check(run_key(KEYS[0], 2))
    with path.open("ab") as other:
        other.write(f"{KEYS[1]} 4".encode())
        other.flush()
        ours.check(run_key(KEYS[1], 1))  # it is not known yet
        other.write(b"2\n")
    with pytest.raises(DecryptionError, match="version 42 was seen"):
        ours.check(run_key(KEYS[1], 41))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_without_a_file_it_is_remembered_in_memory() -> None:
    versions = RecordVersions()
    versions.check(run_key(KEYS[0], 3))
    with pytest.raises(DecryptionError, match="remembered in memory"):
        versions.check(run_key(KEYS[0], 2))
