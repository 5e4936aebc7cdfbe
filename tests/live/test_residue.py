"""Plaintext that was staged is gone: after a step, an exit, an exception, a signal; and never lies on a disk unasked."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

import securemfg
from securemfg.artifacts import staging
from securemfg.errors import EncryptionError
from tests.parts import until
from tests.parts.mlflow_server import Store

MEMORY = Path("/dev/shm")

pytestmark = pytest.mark.skipif(not staging._in_memory(MEMORY), reason="needs tmpfs on /dev/shm")


@pytest.fixture
def canary() -> str:
    return f"canary-{uuid.uuid4().hex}"


_children: list[subprocess.Popen[str]] = []


@pytest.fixture(autouse=True)
def _nothing_staged() -> Iterator[None]:
    staging.sweep()
    yield
    for process in _children:  # of a test that failed half-way
        process.kill()
        process.communicate()
    _children.clear()


@pytest.fixture
def place() -> Iterator[Path]:
    """Memory of a test's own: activations elsewhere on this machine sweep what lies directly in /dev/shm."""
    folder = MEMORY / f"test-{uuid.uuid4().hex}"
    folder.mkdir(mode=0o700)
    yield folder
    folder.rmdir()  # nothing is left in it


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """The temporary folder of child processes."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    return folder


def lying_about(canary: str, *places: Path) -> list[Path]:
    """Every file with the canary in its bytes, in memory and in `places`."""
    found = []
    for place in (MEMORY, Path.home(), Path.cwd(), *places):
        for folder, _, names in os.walk(place):
            for name in names:
                try:
                    data = Path(folder, name).read_bytes()
                except OSError:
                    continue
                if canary.encode() in data:
                    found.append(Path(folder, name))
    return found


def child(code: str, disk: Path, *arguments: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.PIPE,
        text=True, env={**os.environ, "TMPDIR": str(disk)},
    )  # fmt: skip
    _children.append(process)
    return process


def said(process: subprocess.Popen[str]) -> str:
    """The child's next line; when there is none, why."""
    assert process.stdout is not None
    line = process.stdout.readline().strip()
    assert line, process.communicate()[1][-2000:]
    return line


STAGE = """
import os, signal, sys
from pathlib import Path
from securemfg.artifacts import staging
place = Path(sys.argv[2])
folder = staging.fresh_folder(place)
(folder / "model.pkl").write_text(sys.argv[1])
deep = folder / "read" / "only"
deep.mkdir(parents=True)
(deep / "x").write_text(sys.argv[1])
deep.chmod(0o500)
print(folder, flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [
        ("", 0),
        ("raise RuntimeError('in the user code')", 1),
        ("sys.exit(3)", 3),
        ("os._exit(4)", 4),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGHUP)", -signal.SIGHUP),
        ("os.kill(os.getpid(), signal.SIGSEGV)", -signal.SIGSEGV),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.killpg(os.setpgid(0, 0) or os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
)
def test_however_a_process_ends_its_plaintext_is_gone(
    end: str, code: int, canary: str, disk: Path, place: Path
) -> None:
    process = child(STAGE + end, disk, canary, str(place))
    folder = Path(said(process))
    assert lying_about(canary, disk) == [folder / "model.pkl", folder / "read" / "only" / "x"]
    assert folder.parent.parent.stat().st_mode & 0o777 == 0o700
    process.communicate("\n", timeout=30)
    assert process.returncode == code  # as without us
    until(lambda: not lying_about(canary, disk), within=2, what="no plaintext")
    until(lambda: not folder.parent.parent.exists(), within=2, what="no folder")


def test_a_handler_of_the_user_s_own_is_left_in_place_and_so_is_its_absence(
    canary: str, disk: Path, place: Path
) -> None:
    code = (
        "import signal\n"
        "def mine(*_): raise SystemExit(7)\n"
        "signal.signal(signal.SIGTERM, mine)\n" + STAGE + "assert signal.getsignal(signal.SIGTERM) is mine\n"
        "assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    process = child(code, disk, canary, str(place))
    said(process)
    process.communicate("\n", timeout=30)
    assert process.returncode == 7
    assert lying_about(canary, disk) == []


def reaper_of(process: subprocess.Popen[str], folder: Path) -> int:
    """The process at the other end of one of the child's pipes."""
    ends = {os.readlink(f"/proc/{process.pid}/fd/{n}") for n in os.listdir(f"/proc/{process.pid}/fd") if int(n) > 2}
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and entry != str(process.pid):
            try:
                if os.readlink(f"/proc/{entry}/fd/0") in ends:
                    found.append(int(entry))
            except OSError:
                continue
    assert len(found) == 1, found
    return found[0]


def test_the_helper_is_small_silent_knows_nothing_and_is_nobody_s_child(canary: str, disk: Path, place: Path) -> None:
    environment = {"SECUREMFG_HOME": str(disk / canary)}
    gone = disk / "gone"
    gone.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", f"import sys; sys.argv[1:] = [{canary!r}, {str(place)!r}]\n" + STAGE], cwd=gone, text=True,
        stdout=subprocess.PIPE, stdin=subprocess.PIPE, env={**os.environ, **environment, "TMPDIR": str(disk)},
    )  # fmt: skip
    folder = Path(said(process))
    reaper = reaper_of(process, folder)
    about = Path(f"/proc/{reaper}")
    assert canary.encode() not in about.joinpath("environ").read_bytes() + about.joinpath("cmdline").read_bytes()
    assert os.readlink(about / "fd/1") == os.readlink(about / "fd/2") == os.devnull
    assert len(os.listdir(about / "fd")) == 3
    assert os.readlink(about / "cwd") == "/"
    resident = next(line for line in (about / "status").read_text().splitlines() if line.startswith("VmRSS"))
    assert int(resident.split()[1]) < 16_000  # KiB
    assert Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text() == ""  # no zombie either
    gone.rmdir()
    os.kill(reaper, signal.SIGTERM)  # a service manager tells everybody at once
    process.kill()
    process.communicate(timeout=30)
    until(lambda: not folder.exists(), within=2, what="no plaintext")
    until(lambda: not about.exists() or "Z" in (about / "stat").read_text().rpartition(")")[2], what="its end")


def test_a_helper_that_was_killed_is_replaced_before_more_is_staged(canary: str, disk: Path, place: Path) -> None:
    code = (
        STAGE
        + "(staging.fresh_folder(place) / 'y').write_text(sys.argv[1])\nprint('again', flush=True)\nsignal.pause()\n"
    )
    process = child(code, disk, canary, str(place))
    folder = Path(said(process))
    reaper = reaper_of(process, folder)
    os.kill(reaper, signal.SIGKILL)
    until(lambda: not os.path.lexists(f"/proc/{reaper}/fd/0"), what="its death")
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    assert said(process) == "again"
    process.kill()
    process.communicate(timeout=30)
    until(lambda: not lying_about(canary, disk), within=2, what="no plaintext")


def test_no_helper_means_no_plaintext(canary: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from securemfg.artifacts import reaper

    monkeypatch.setattr(reaper, "_interpreter", lambda: "/bin/false")
    monkeypatch.setattr(staging, "_REAPER", reaper.Reaper())
    with pytest.raises(EncryptionError, match=r"no plaintext is staged.*ended with 1"):
        staging.fresh_folder()
    assert not list(MEMORY.glob(f"securemfg-{os.getpid()}-*"))


def test_a_forked_child_neither_keeps_its_parent_s_plaintext_nor_takes_it_away(
    canary: str, disk: Path, place: Path
) -> None:
    code = STAGE + (
        "if os.fork() == 0:\n"
        "    mine = staging.fresh_folder(place)\n"
        "    (mine / 'child').write_text(sys.argv[1])\n"
        "    print(os.getpid(), mine, flush=True)\n"
        "    signal.pause()\n"
        "signal.pause()\n"
    )
    process = child(code, disk, canary, str(place))
    parents = Path(said(process))
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    pid, childs = said(process).split()
    assert parents.exists()
    process.kill()
    process.wait(30)
    until(lambda: not parents.exists(), within=2, what="no plaintext of the parent's")
    assert lying_about(canary, disk) == [Path(childs) / "child"]
    os.kill(int(pid), signal.SIGKILL)
    until(lambda: not lying_about(canary, disk), within=2, what="no plaintext of the child's")


# -- steps


def test_what_a_step_staged_goes_with_it_and_with_no_other(canary: str) -> None:
    ready, go = threading.Event(), threading.Event()
    other: list[Path] = []

    def longer() -> None:
        with securemfg.step("inference"):
            other.append(staging.fresh_folder())
            (other[0] / "x").write_text(canary)
            ready.set()
            go.wait(30)

    outside = staging.fresh_folder()
    thread = threading.Thread(target=longer)
    with pytest.raises(ZeroDivisionError):
        with securemfg.step("training"):
            thread.start()
            assert ready.wait(30)
            mine = staging.fresh_folder()
            with securemfg.step("evaluation"):
                inner = staging.fresh_folder()
                (inner / "x").write_text(canary)
            assert not inner.exists()
            assert mine.exists()
            raise ZeroDivisionError
    assert not mine.exists()
    assert other[0].exists()
    go.set()
    thread.join(30)
    assert lying_about(canary) == []
    assert outside.exists()  # until the process ends, or encryption goes off
    securemfg.artifacts.deactivate()
    assert not outside.exists()


def test_a_loaded_model_is_gone_after_its_step_and_still_works(local_store: Store, local_experiment: str) -> None:
    mlflow = pytest.importorskip("mlflow")
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    features = np.array([[0.0], [1.0]])
    with securemfg.step("training"), mlflow.start_run():
        info = mlflow.sklearn.log_model(
            LogisticRegression().fit(features, [0, 1]), name="press", pip_requirements=["scikit-learn"]
        )
        assert not [path for path in MEMORY.glob(f"securemfg-{os.getpid()}-*/*/*") if path.is_dir()]
    with securemfg.step("inference"):
        model = mlflow.pyfunc.load_model(info.model_uri)
        assert list(MEMORY.glob(f"securemfg-{os.getpid()}-*/*/*/**/MLmodel"))
    assert not list(MEMORY.glob(f"securemfg-{os.getpid()}-*/*/*"))
    assert model.predict(features).tolist() == [0, 1]


# -- places


def test_without_memory_and_without_a_setting_nothing_is_staged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(staging, "_candidates", lambda: iter([tmp_path]))  # a machine without tmpfs
    monkeypatch.setattr(staging, "_MEMORY", frozenset())
    with pytest.raises(EncryptionError, match=r"no memory-backed folder.*artifacts\.staging"):
        staging.fresh_folder()
    assert list(tmp_path.glob("securemfg-*")) == []
    chosen = tmp_path / "chosen"
    chosen.mkdir(mode=0o700)
    assert staging.fresh_folder(chosen).is_relative_to(chosen)


def test_a_place_too_small_is_an_error_that_names_the_setting(tmp_path: Path) -> None:
    for chosen in (None, tmp_path):
        for _ in range(2):  # when the folder is made, and when it is there
            with pytest.raises(EncryptionError, match=r"are to be staged.*artifacts\.staging"):
                staging.fresh_folder(chosen, need=1 << 60)
            staging.fresh_folder(chosen)
    with pytest.raises(EncryptionError, match=r"artifacts\.staging"):
        with staging.room_for(staging.fresh_folder() / "x", 1 << 60):
            pytest.fail("the body ran")
    with pytest.raises(EncryptionError, match=r"is full.*artifacts\.staging"):
        with staging.room_for(staging.fresh_folder() / "x", 1):
            raise OSError(errno.ENOSPC, "No space left on device")
    with staging.room_for(tmp_path / "not staged", 1 << 60):
        pass


@pytest.mark.parametrize("way", ["missing", "link", "file", "open", "foreign"])
def test_a_place_that_others_could_change_is_refused(way: str, tmp_path: Path) -> None:
    place = tmp_path / "place"
    match way:
        case "link":
            (tmp_path / "real").mkdir()
            place.symlink_to(tmp_path / "real")
        case "file":
            place.write_text("")
        case "open":
            place.mkdir()
            place.chmod(0o777)
        case "foreign":
            if os.geteuid() != 0:
                pytest.skip("needs root, to give a folder away")
            place.mkdir()
            os.chown(place, 54321, 54321)
    with pytest.raises(EncryptionError, match=r"no plaintext can be staged in .*place: .*artifacts\.staging"):
        staging.fresh_folder(place)


def test_dead_processes_folders_are_swept_at_activation_and_living_ones_are_not(tmp_path: Path, disk: Path) -> None:
    pid, start, space = os.getpid(), staging._started(os.getpid()), staging._space()

    def left(name: str) -> Path:
        folder = tmp_path / f"securemfg-{name}-abc"
        folder.mkdir(mode=0o700)
        (folder / "model.pkl").write_text("plain")
        (folder / ".lock").write_text("")
        return folder

    reused = left(f"{pid}-{start + 1}-{space}")
    living = left(f"{pid}-{start}-{space}")
    elsewhere = left(f"{pid}-{start}-{space + 1}")  # a container's, by its lock alone
    ended = left(f"{pid}-{start}-{space + 2}")
    not_ours = tmp_path / "securemfg-results"
    not_ours.mkdir(mode=0o700)
    target = tmp_path / "target"
    target.mkdir(mode=0o700)
    (target / "kept").write_text("x")
    link = tmp_path / f"securemfg-{pid}-{start + 2}-{space}-link"
    link.symlink_to(target)
    (reused / "link").symlink_to(target)
    holder = subprocess.Popen(
        [sys.executable, "-c", "import fcntl,sys; f=open(sys.argv[1]); fcntl.flock(f, 2); print(1,flush=True); input()",
         str(elsewhere / ".lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    said(holder)
    Path("securemfg.toml").write_text(f"[artifacts]\nstaging = '{tmp_path}'\n")
    securemfg.artifacts.activate()
    assert [path.exists() for path in (reused, living, elsewhere, ended, not_ours)] == [False, True, True, False, True]
    assert (target / "kept").read_text() == "x"
    securemfg.artifacts.deactivate()
    holder.communicate("\n", timeout=30)


# -- MLflow's own temporary files

LOGGING = """
import os, sys, signal, tempfile
import mlflow, securemfg
from securemfg.artifacts.repository import EncryptedRepository
mlflow.set_tracking_uri(sys.argv[2])
mlflow.set_experiment(sys.argv[3])
assert tempfile.gettempdir() == os.environ["TMPDIR"] and tempfile.mkdtemp().startswith(os.environ["TMPDIR"])
kept = EncryptedRepository.log_artifact
def held(self, local_file, artifact_path=None):
    print(local_file, flush=True)
    sys.stdin.readline()
    return kept(self, local_file, artifact_path)
EncryptedRepository.log_artifact = held
with securemfg.step("training"), mlflow.start_run():
    assert tempfile.mkdtemp().startswith(os.environ["TMPDIR"])  # not MLflow's: as ever
    mlflow.log_text(sys.argv[1], "note.txt")
    mlflow.log_dict({"recipe": sys.argv[1]}, "recipe.json")
    mlflow.log_table({"name": [sys.argv[1]]}, "table.json")
"""


def test_what_mlflow_is_logging_lies_in_memory_and_is_gone_when_it_is_killed(
    local_store: Store, local_experiment: str, canary: str, disk: Path
) -> None:
    process = child(LOGGING, disk, canary, local_store.tracking_uri, local_experiment)
    assert process.stdin is not None
    for name in ("note.txt", "recipe.json", "table.json"):
        place = Path(said(process))
        assert place.name == name
        assert staging.is_staged(place)
        assert lying_about(canary, disk) == [place]  # and nowhere else
        if name != "table.json":
            process.stdin.write("\n")
            process.stdin.flush()
    process.kill()
    process.communicate(timeout=30)
    until(lambda: not lying_about(canary, disk), within=2, what="no plaintext")


def test_mlflow_s_temporary_files_are_where_they_were_after_deactivation(
    local_store: Store, local_experiment: str
) -> None:
    from mlflow.utils.file_utils import TempDir

    before = (tempfile.gettempdir, TempDir.__exit__)
    securemfg.artifacts.activate()
    with TempDir() as folder:
        assert staging.is_staged(Path(folder.path("x")))
    with pytest.raises(EncryptionError, match=r"is full.*artifacts\.staging"):
        with TempDir():
            raise OSError(errno.ENOSPC, "No space left on device")
    assert tempfile.gettempdir() == before[0]()
    securemfg.artifacts.deactivate()
    assert (tempfile.gettempdir, TempDir.__exit__) == before
    with TempDir() as folder:
        assert not staging.is_staged(Path(folder.path("x")))


def test_a_download_to_a_folder_of_the_user_s_that_is_killed_leaves_nothing_half_done(
    canary: str, disk: Path, tmp_path: Path
) -> None:
    code = (
        "import sys, signal\nfrom pathlib import Path\nfrom securemfg.artifacts import staging\n"
        "folder = staging.partial_folder(Path(sys.argv[2]))\n(folder / 'x').write_text(sys.argv[1])\n"
        "print(folder, flush=True)\nsignal.pause()\n"
    )
    target = tmp_path / "target"
    target.mkdir()
    process = child(code, disk, canary, str(target))
    partial = Path(said(process))
    assert lying_about(canary, target) == [partial / "x"]
    process.kill()
    process.communicate(timeout=30)
    until(lambda: not list(target.iterdir()), within=2, what="no half download")
