"""Vault (or OpenBao): read KV v2, lease from dynamic engines, renew, revoke.

Rights the policy needs: `read` on the path (for KV v2 on `MOUNT/data/PATH`); `update` on `sys/leases/revoke` to end
leases when their last step leaves. Without the latter they end with the token, which is revoked at exit. The rest
(renewal, a mount's type) comes with Vault's `default` policy and any right inside the mount.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

from securemfg._secret import Secret
from securemfg.credentials.grant import Grant, Wanted
from securemfg.credentials.vault_client import VaultClient
from securemfg.credentials.vault_login import Reply
from securemfg.errors import CredentialDenied, CredentialError

__all__ = ["VaultSource"]

_SHORTENED: Final = 0.9  # a renewal below this part of what was asked says that the maximum TTL is near


class VaultSource:
    """Credentials from one Vault, over a client that other rooms may share."""

    def __init__(self, client: VaultClient) -> None:
        self._client = client
        self._mounts: dict[str, bool] = {}  # mount with its slash -> whether it is KV v2

    def lease(self, wanted: Wanted, /) -> Grant:
        """Read `MOUNT/PATH`: KV v2 gives its latest version, any other engine a new credential with its lease.

        Values that are not text are given as JSON. A KV value is read again after the setting `ttl`, if there is one.
        Raises CredentialDenied or CredentialError.
        """
        path = wanted.target.strip("/")
        what = f"credential {wanted.name!r} ({wanted.origin})"
        mount, is_kv = self._mount(path, what)
        url = f"{mount}data/{path.removeprefix(mount)}" if is_kv else path
        reply, generation = self._client.authorized("get", url, what=what)
        if reply.status == 404:
            raise self._absent(reply, path, what)
        if reply.status != 200:
            raise CredentialError(
                f"Vault at {self._client.address} gave nothing at {path!r} for {what}: {reply.errors}"
            )
        found = reply.data.get("data") if is_kv else reply.data
        values = {str(name): Secret(_text(value)) for name, value in (found or {}).items()}
        if not values:
            raise CredentialDenied(f"Vault holds no fields at {path!r} for {what}: write some there")
        setting = wanted.settings.ttl.total_seconds() if wanted.settings.ttl is not None else None
        lease_id = str(reply.body.get("lease_id") or "")
        if not lease_id:
            return Grant(values=values, ttl=setting, ends="a value read from Vault has no lease to revoke")
        granted = float(reply.body.get("lease_duration") or 0)
        asked = granted if setting is None else min(granted, setting)
        grant = Grant(
            values=values,
            ttl=asked,
            parent_ttl=self._client.left(generation),
            lease_id=lease_id,
            revoke=lambda timeout: self._revoke(lease_id, generation, timeout),
        )
        return (
            _extendable(grant, lambda: self._renew(grant, asked, generation)) if reply.body.get("renewable") else grant
        )

    def close(self, timeout: float = 2.0, /) -> None:
        """Revoke the token, and with it whatever was leased with it. Never raises."""
        self._client.close(timeout)

    def _renew(self, grant: Grant, asked: float, generation: int) -> Grant | None:
        """The same values for longer, or None: its token was replaced, it is gone, or past its maximum TTL."""
        body = {"lease_id": grant.lease_id, "increment": max(1, round(asked))}
        reply, by = self._client.authorized("put", "sys/leases/renew", body, what="the renewal of a lease")
        got = float(reply.body.get("lease_duration") or 0)
        if by != generation or reply.status != 200 or got <= 0:
            return None
        renewed = replace(
            grant,
            ttl=min(got, asked),
            parent_ttl=self._client.left(generation),
            final=got < _SHORTENED * asked or bool(reply.body.get("warnings")),
        )
        return _extendable(renewed, lambda: self._renew(grant, asked, generation))

    def _revoke(self, lease_id: str, generation: int, timeout: float) -> None:
        if self._client.left(generation) <= 0:
            return  # its token is gone, and the lease with it
        body = {"lease_id": lease_id, "sync": True}  # the reply then says that it is over, not that it will be
        reply, _ = self._client.authorized(
            "put", "sys/leases/revoke", body, what="the revocation of a lease", timeout=timeout
        )
        if reply.status not in {200, 204}:
            raise CredentialError(f"Vault at {self._client.address} did not revoke a lease: {reply.errors}")

    def _mount(self, path: str, what: str) -> tuple[str, bool]:
        """The mount of a path, with its slash, and whether it is KV v2. Asked once per mount."""
        for known, is_kv in self._mounts.items():
            if path.startswith(known):
                return known, is_kv
        reply, _ = self._client.authorized("get", f"sys/internal/ui/mounts/{path}", what=what)
        mount = str(reply.data.get("path") or "")
        if reply.status != 200 or not mount:
            raise CredentialDenied(
                f"Vault at {self._client.address} has no engine for {path!r}, needed for {what}: {reply.errors}; "
                "check the first part of the path"
            )
        options = reply.data.get("options") or {}
        is_kv = reply.data.get("type") == "kv" and str(options.get("version")) == "2"
        self._mounts[mount] = is_kv
        return mount, is_kv

    def _absent(self, reply: Reply, path: str, what: str) -> CredentialDenied:
        metadata = reply.data.get("metadata") or {}
        if metadata.get("deletion_time") or metadata.get("destroyed"):
            return CredentialDenied(f"the latest version of {path!r} in Vault is deleted ({what}): write a new one")
        return CredentialDenied(f"Vault at {self._client.address} has nothing at {path!r} for {what}: check the path")


def _extendable(grant: Grant, renew: Callable[[], Grant | None]) -> Grant:
    return replace(grant, renew=renew)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
