"""A trail that cannot be kept: what each fail policy does with the step, and that no error of ours hides the body's.

As root, file modes stop nothing: a file lies where the journal's folder belongs, or the disk's calls fail.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

import securemfg
from securemfg import context
from securemfg.audit.writer import Disk
from securemfg.errors import AccessDenied, AuditError, ConfigError
from securemfg.transport import enforcement
from securemfg.workflow import Workflow, default_workflow, reset
from tests.parts.trail import CATALOG, actions, events, settings

QUICK = '[audit]\ndeadline = "100ms"\n'


def blocked(text: str = QUICK) -> Path:
    """Settings, and a file where the journal's folder belongs; returns that file."""
    settings(text, catalog=CATALOG)
    home = Path(".securemfg")
    home.mkdir(mode=0o700)
    (home / "journal").write_text("in the way")
    return home / "journal"


class FullDisk:
    """The journal's system calls, failing once `full` is set."""

    def __init__(self, *, syncs: bool = True) -> None:
        self.full = False
        self._syncs = syncs

    def write(self, fd: int, data: object, offset: int) -> int:
        if self.full and self._syncs:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return os.pwrite(fd, data, offset)

    def sync(self, fd: int) -> None:
        if self.full:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        os.fdatasync(fd)


def on(disk: FullDisk) -> Workflow:
    """The default workflow, with its journal on `disk`."""
    settings(QUICK, catalog=CATALOG)
    workflow = default_workflow()
    workflow.trail.journal._disk = Disk(write=disk.write, sync=disk.sync)
    return workflow


def test_degrade_goes_on_counts_what_waits_and_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    blocked()
    ran = []
    with caplog.at_level(logging.WARNING, logger="securemfg"):
        for number in range(5):
            with securemfg.step("training"):
                ran.append(number)
    assert ran == [0, 1, 2, 3, 4]
    summary = default_workflow().trail.summary()
    assert (summary.emitted, summary.pending, summary.lost) == (10, 10, 0)
    warned = [record.getMessage() for record in caplog.records if "Work goes on" in record.getMessage()]
    assert len(warned) == 1
    assert "journal" in warned[0]


def test_degrade_writes_what_waited_once_the_journal_works_again() -> None:
    obstacle = blocked()
    with securemfg.step("training"):
        pass
    obstacle.unlink()
    with securemfg.step("evaluation"):
        pass
    reset()
    assert actions() == ["step.started", "step.finished"] * 2
    assert [event["stage"] for event in events("step.started")] == ["training", "evaluation"]


def test_block_raises_audit_error_and_the_body_does_not_run() -> None:
    blocked()
    with pytest.raises(AuditError, match=r"journal .* cannot be (opened|read)"):
        with securemfg.step("training", sensitivity="confidential"):
            pytest.fail("the body ran")
    assert context.active() == ()
    assert not enforcement.active()


def test_block_raises_at_the_end_when_the_trail_was_lost_meanwhile() -> None:
    disk = FullDisk()
    on(disk)
    with pytest.raises(AuditError, match="No space left"):
        with securemfg.step("training", sensitivity="confidential"):
            disk.full = True
    assert context.active() == ()
    assert not enforcement.active()
    disk.full = False


def test_block_waits_for_the_disk_at_the_end() -> None:
    disk = FullDisk(syncs=False)
    on(disk)
    with pytest.raises(AuditError, match="not made durable in time"):
        with securemfg.step("training", sensitivity="confidential"):
            disk.full = True
    disk.full = False


def test_fail_closed_has_the_start_on_the_disk_before_the_body_runs() -> None:
    disk = FullDisk(syncs=False)
    workflow = on(disk)
    workflow.emit("warm.up")
    workflow.trail.journal.flush(5)
    disk.full = True
    with pytest.raises(AuditError, match="not made durable in time"):
        with securemfg.step("preparation", sensitivity="pii"):
            pytest.fail("the body ran")
    assert context.active() == ()
    disk.full = False


def test_fail_closed_never_runs_the_body_without_a_journal() -> None:
    blocked()
    with pytest.raises(AuditError):
        with securemfg.step("preparation", sensitivity="pii"):
            pytest.fail("the body ran")


@pytest.mark.parametrize("sensitivity", ["internal", "confidential", "pii"])
def test_the_body_s_exception_is_not_masked_by_a_trail_that_failed(sensitivity: str) -> None:
    disk = FullDisk()
    on(disk)
    mine = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as caught:
        with securemfg.step("training", name="fit", sensitivity=sensitivity):
            disk.full = True
            raise mine
    assert caught.value is mine
    notes = getattr(mine, "__notes__", [])
    if sensitivity == "internal":
        assert notes == []
    else:
        assert len(notes) == 1
        assert notes[0].startswith("securemfg, while leaving fit: ")
    assert context.active() == ()
    disk.full = False


def test_an_interrupt_is_not_masked_either() -> None:
    disk = FullDisk()
    on(disk)
    with pytest.raises(KeyboardInterrupt) as caught:
        with securemfg.step("training", sensitivity="confidential"):
            disk.full = True
            raise KeyboardInterrupt
    assert len(caught.value.__notes__) == 1
    disk.full = False


@pytest.mark.parametrize("role", ["Service", None])
@pytest.mark.parametrize("asset", ["production_sensor_data", "operator_feedback"])
def test_a_denial_that_cannot_be_written_stays_a_denial(asset: str, role: str | None) -> None:
    blocked()
    with pytest.raises(AccessDenied):
        with securemfg.step("training", assets=[asset], role=role):
            pytest.fail("the body ran")
    with pytest.raises(AccessDenied):
        securemfg.authorize("export", asset, role=role)


def test_in_observe_mode_a_denial_that_cannot_be_written_is_an_audit_error() -> None:
    blocked(f'mode = "observe"\n{QUICK}')
    with pytest.raises(AuditError):
        with securemfg.step("training", assets=["production_sensor_data"], role="Service"):
            pytest.fail("the body ran")


def test_a_home_that_cannot_be_made_is_a_config_error_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("file").write_text("")
    monkeypatch.setenv("SECUREMFG_HOME", str(Path("file/home").absolute()))
    with pytest.raises(ConfigError, match="set SECUREMFG_HOME"):
        with securemfg.step("training"):
            pytest.fail("the body ran")


def _tls(workflow: Workflow, broken: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow.enforcement, "enforce", broken)


def test_a_step_whose_tls_cannot_be_enforced_fails_before_its_body_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise securemfg.TransportError("a loaded library cannot be guarded")

    workflow = default_workflow()
    _tls(workflow, broken, monkeypatch)
    with pytest.raises(securemfg.TransportError, match="cannot be guarded"):
        with securemfg.step("training"):
            pytest.fail("the body ran")
    assert [(e["action"], e.get("reason")) for e in events("step.")] == [
        ("step.started", None),
        ("step.failed", "securemfg.errors.TransportError"),
    ]
    assert context.active() == ()


def test_a_step_whose_artifacts_cannot_be_encrypted_fails_before_its_body(monkeypatch: pytest.MonkeyPatch) -> None:
    from securemfg.artifacts import activation

    def broken(_: object) -> None:
        raise securemfg.EncryptionError("MLflow would bypass securemfg")

    monkeypatch.setattr(activation, "activate", broken)
    with pytest.raises(securemfg.EncryptionError, match="bypass"):
        with securemfg.step("training"):
            pytest.fail("the body ran")
    assert actions() == ["step.started", "step.failed"]
    assert not enforcement.active()


def test_what_forbade_a_step_is_not_masked_by_a_trail_that_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = FullDisk()
    workflow = on(disk)

    def broken(*_: object) -> None:
        disk.full = True
        raise securemfg.TransportError("a loaded library cannot be guarded")

    _tls(workflow, broken, monkeypatch)
    with pytest.raises(securemfg.TransportError, match="cannot be guarded") as caught:
        with securemfg.step("training", sensitivity="confidential"):
            pytest.fail("the body ran")
    assert "No space left" in caught.value.__notes__[0]
    disk.full = False
