"""The ssl contexts of a policy, made once and shared: a new one costs some 50 ms of reading certificates."""

from __future__ import annotations

import os
import ssl
import threading
from pathlib import Path
from typing import Final

from securemfg.errors import ConfigError
from securemfg.transport.policy import TlsPolicy

__all__ = ["Certificate", "client_context", "context_with_floor", "server_context"]

Certificate = tuple[Path, Path]  # the certificate chain and its private key, PEM

_MOST: Final = 32
_lock = threading.Lock()
_contexts: dict[tuple[object, ...], ssl.SSLContext] = {}


def client_context(policy: TlsPolicy, *, certificate: Certificate | None = None) -> ssl.SSLContext:
    """The shared client context of `policy`: verification and host name check on, the system's trust store or
    `ca_file`.

    `certificate` is shown to servers that ask for one. A file that changed on disk gives a new context. Do
    not change the result: others use it. Raises ConfigError when a file cannot be used.
    """
    floor = policy.floor if policy.enforcing else min(policy.floor, ssl.TLSVersion.TLSv1_2)
    return context_with_floor(policy, floor, certificate)


def context_with_floor(policy: TlsPolicy, floor: ssl.TLSVersion, certificate: Certificate | None) -> ssl.SSLContext:
    """As `client_context`, for a host with a floor of its own."""
    files = (policy.ca_file, *(certificate or ()))
    key = (floor, *(_version_of(file, policy) for file in files))
    with _lock:
        context = _contexts.get(key)
        if context is None:
            context = _new(policy, floor, certificate)
            if len(_contexts) >= _MOST:
                _contexts.pop(next(iter(_contexts)))
            _contexts[key] = context
        return context


def server_context(certificate: Path, key: Path, *, client_ca: Path | None = None) -> ssl.SSLContext:
    """A server context: TLS 1.3 only; with `client_ca` every client must show a certificate from it.

    Raises ConfigError when a file cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    _load(context, (certificate, key))
    if client_ca is not None:
        try:
            context.load_verify_locations(client_ca)
        except OSError as error:
            raise ConfigError(f"the client CA {client_ca} cannot be used: {error}; give a PEM file") from error
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _new(policy: TlsPolicy, floor: ssl.TLSVersion, certificate: Certificate | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=policy.ca_file)
    except OSError as error:
        raise ConfigError(
            f"tls.ca_file {policy.ca_file} cannot be used: {error}; give a PEM file ({policy.origin})"
        ) from error
    context.minimum_version = floor
    if certificate is not None:
        _load(context, certificate)
    return context


def _load(context: ssl.SSLContext, certificate: Certificate) -> None:
    chain, key = certificate

    def no_password() -> str:  # else OpenSSL would ask the terminal
        raise ConfigError(f"the key {key} is encrypted: give one without a password, mode 0600")

    try:
        context.load_cert_chain(chain, key, no_password)
    except OSError as error:
        raise ConfigError(f"certificate {chain} with key {key} cannot be used: {error}; give a pair, as PEM") from error


def _version_of(file: Path | None, policy: TlsPolicy) -> tuple[object, ...] | None:
    """What tells one content of a file from the next without reading it."""
    if file is None:
        return None
    try:
        status = file.stat()
    except OSError as error:
        what = "tls.ca_file" if file == policy.ca_file else "certificate"
        raise ConfigError(
            f"{what} {file} cannot be read: {error.strerror}; check the path ({policy.origin})"
        ) from error
    return str(file), status.st_ino, status.st_size, status.st_mtime_ns


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_after_fork)
