"""One step with a real credential and a secret recipe; then everything that was left behind is searched for both."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import tempfile
import traceback
from pathlib import Path
from typing import Any

import pytest

import securemfg
from tests.parts.mlflow_server import Store

PASSWORD = "canary-password-51f0"
RECIPE = "canary-recipe-93ab"


def processes() -> bytes:
    """The command lines and environments of every process of this machine that can be read."""
    parts = []
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                parts.append((process / name).read_bytes())
            except OSError:
                continue
    return b"\0".join(parts)


def files(*folders: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


def test_no_secret_is_left_anywhere(
    openbao: Any, local_store: Store, local_experiment: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    import mlflow

    from securemfg.artifacts.staging import sweep

    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    path = f"secret/canary/{os.getpid()}"
    openbao.write(path, {"username": "trainer", "password": PASSWORD})
    role = openbao.role(tmp_path, rules={path.replace("secret/", "secret/data/"): ["read"]})
    Path("securemfg.toml").write_text(
        f'[keys]\ndefault = "local:.securemfg/keys/default.key"\n'
        f'[vault]\naddress = "{openbao.address}"\n'
        f'auth = {{ role_id = "{role.role_id}", secret_id_file = "{role.secret_id_file}" }}\n'
        f'[credentials]\nfeatures-db = {{ vault = "{path}" }}\n'
    )
    securemfg.encryption.create_local_key(Path(".securemfg/keys/default.key"))
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []
    with securemfg.step("training", sensitivity="confidential", credentials=["features-db"]) as step:
        credential = step.credential("features-db")
        assert credential["password"].reveal() == PASSWORD  # it is real
        seen += [repr(credential), str(credential), f"{credential['password']}", repr(step), repr(step.context)]
        logging.getLogger("user").warning("credential %s password %s", credential, credential["password"])
        for attempt in (pickle.dumps, json.dumps):
            with pytest.raises(TypeError):
                attempt(credential["password"])
        try:
            raise RuntimeError(f"could not connect with {credential['password']!r}")
        except RuntimeError as error:
            shown = io.StringIO()
            traceback.TracebackException.from_exception(error, capture_locals=True).print(file=shown)
            seen.append(shown.getvalue().replace(f"PASSWORD = '{PASSWORD}'", ""))
        step.audit("database.opened", resource="features-db", reason=f"password={PASSWORD}")  # a user's mistake
        with mlflow.start_run() as run:
            mlflow.log_text(RECIPE, "recipe.txt")
            mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/recipe.txt")
        assert PASSWORD.encode() not in processes()
        assert openbao.root_token.encode() not in b"".join(files(Path(".securemfg")).values())
    securemfg.workflow.reset()  # type: ignore[attr-defined]
    sweep()
    written = files(Path.cwd(), Path.home(), temporary, Path("/dev/shm"))
    secret_id = role.secret_id_file.read_bytes().strip()
    for name, canary in (("password", PASSWORD.encode()), ("recipe", RECIPE.encode()), ("secret id", secret_id)):
        assert [str(path) for path, data in written.items() if canary in data] == [], name
    out = capfd.readouterr()
    everything = "\n".join([*seen, out.out, out.err, caplog.text])
    assert PASSWORD not in everything
    assert RECIPE not in everything
    events = [
        json.loads(line) for path, data in written.items() if path.suffix == ".jsonl" for line in data.splitlines()
    ]
    (mistake,) = [event for event in events if event["action"] == "database.opened"]
    assert "reason" in mistake["redactions"]
    assert {"credential.leased", "credential.revoked", "artifact.encrypted"} <= {event["action"] for event in events}
