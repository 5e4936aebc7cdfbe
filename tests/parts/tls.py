"""TLS servers of every kind that must be refused, and a few that must not, with certificates from a CA of their own."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import pytest

from securemfg.settings import AllowEntry
from securemfg.transport import choke, enforcement
from securemfg.transport.certificates import DevelopmentCA, Issued
from securemfg.transport.policy import TlsPolicy
from securemfg.transport.servers import JsonServer

__all__ = ["Pki", "RawServer", "Trail", "enforcing", "non_loopback", "pki", "trail"]


class Trail:
    """An audit trail in memory."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, action: str, **fields: Any) -> str:
        self.events.append((action, fields))
        return str(len(self.events))

    def of(self, action: str) -> list[dict[str, Any]]:
        return [fields for name, fields in self.events if name == action]

    def codes(self, outcome: str = "denied") -> list[str]:
        return [f["detail"]["code"] for f in self.of("tls.refused") if f["outcome"] == outcome]


class Elsewhere(ssl.SSLContext):
    """A server's context that no policy of this process sees, as if the server ran in another one."""

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        with choke.exempt():
            return super().wrap_socket(*args, **options)


class Pki:
    """A CA and the certificates that go wrong in one way each."""

    def __init__(self, folder: Path) -> None:
        self.ca = DevelopmentCA.create(folder / "ca")
        self.other = DevelopmentCA.create(folder / "other", name="another CA")
        self.good = self.ca.issue(["localhost", "127.0.0.1"])
        long_ago = DevelopmentCA(self.ca.folder, now=lambda: datetime.now(UTC) - timedelta(days=90))
        self.expired = self._elsewhere(folder / "expired", long_ago)
        later = DevelopmentCA(self.ca.folder, now=lambda: datetime.now(UTC) + timedelta(days=9))
        self.future = self._elsewhere(folder / "future", later)
        self.wrong_host = self.ca.issue(["elsewhere.plant"])
        self.unknown = self.other.issue(["localhost", "127.0.0.1"])
        self.self_signed = Issued(
            certificate=self.other.ca_file, key=self.other.folder / "ca.key", ca_file=self.other.ca_file
        )

    @staticmethod
    def _elsewhere(folder: Path, ca: DevelopmentCA) -> Issued:
        """Issued to a folder of its own: the names are those of `good`."""
        folder.mkdir()
        mine = DevelopmentCA(folder, now=ca._now)
        for name in ("ca.pem", "ca.key"):
            (folder / name).write_bytes((ca.folder / name).read_bytes())
        return mine.issue(["localhost", "127.0.0.1"])

    def policy(self, **changes: Any) -> TlsPolicy:
        return TlsPolicy(**{"ca_file": self.ca.ca_file, "origin": "securemfg.toml", **changes})

    @staticmethod
    def context(issued: Issued, *, tls12: bool = False) -> ssl.SSLContext:
        context = Elsewhere(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(issued.certificate, issued.key)
        if tls12:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        else:
            context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context

    @contextmanager
    def server(self, issued: Issued | None = None, *, tls12: bool = False) -> Iterator[JsonServer]:
        with JsonServer(echo, self.context(issued or self.good, tls12=tls12)) as server:
            yield server


def echo(path: str, body: object) -> Mapping[str, object]:
    return {"path": path, "body": body}


class RawServer:
    """Takes connections in the clear, keeps every byte it gets, and sends one fixed answer."""

    def __init__(
        self,
        answer: bytes = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        *,
        host: str = "127.0.0.1",
        eager: bool = False,
    ) -> None:
        self.received = b""
        self.connections = 0
        self._answer = answer
        self._eager = eager  # answers anything at once, not only a whole request
        self._socket = socket.create_server((host, 0))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://{host}:{self.port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(20)
            while data := connection.recv(65536):
                self.received += data
                if self._eager or self.received.endswith(b"\r\n\r\n"):
                    connection.sendall(self._answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@contextmanager
def enforcing(policy: TlsPolicy, emit: Any) -> Iterator[None]:
    enforcement.enforce(policy, emit)
    try:
        yield
    finally:
        enforcement.release(policy, emit)


def non_loopback() -> str:
    """An address of this machine that is not loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            address = str(probe.getsockname()[0])
        except OSError:
            address = "127.0.0.1"
    if address.startswith("127."):
        pytest.skip("needs a network address besides loopback")
    return address


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    return Pki(tmp_path_factory.mktemp("pki"))


@pytest.fixture
def trail() -> Trail:
    return Trail()


FLOOR_12 = AllowEntry(host="localhost", floor="1.2", reason="an old press controller")
