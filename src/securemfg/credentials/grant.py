"""What a service grants and what a holder gets to see of it. No I/O here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NoReturn, Protocol, SupportsIndex, final

from securemfg._secret import Secret
from securemfg.errors import CredentialError, nearest
from securemfg.settings import CredentialSettings

__all__ = ["Credential", "Grant", "Source", "Wanted"]


@final
class Credential(Mapping[str, Secret]):
    """One consistent set of secret values, read-only. Shows field names only; refuses pickle, copy and JSON.

    `expires` is the last moment it should be used (aware, UTC), or None when its service sets no end.
    A renewal makes a new Credential: ask the lease again rather than keep one for hours.
    """

    __slots__ = ("__lease_id", "__values", "_expires", "_name")
    __lease_id: Secret | None
    __values: dict[str, Secret]
    _expires: datetime | None
    _name: str

    def __init__(
        self,
        name: str,
        values: Mapping[str, Secret],
        *,
        expires: datetime | None = None,
        lease_id: str | None = None,
    ) -> None:
        put = object.__setattr__
        put(self, "_name", name)
        put(self, "_expires", expires)
        put(self, "_Credential__values", dict(values))
        put(self, "_Credential__lease_id", None if lease_id is None else Secret(lease_id))

    @property
    def name(self) -> str:
        return self._name

    @property
    def expires(self) -> datetime | None:
        return self._expires

    @property
    def lease_id(self) -> Secret | None:
        """The service's id of the lease, hidden: whoever has it may renew or revoke."""
        return self.__lease_id

    def __getitem__(self, field_name: str) -> Secret:
        try:
            return self.__values[field_name]
        except KeyError:
            raise KeyError(
                f"credential {self.name!r} has no field {field_name!r}{nearest(field_name, self.__values)}"
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self.__values)

    def __len__(self) -> int:
        return len(self.__values)

    def __repr__(self) -> str:
        expires = f", expires {self.expires:%Y-%m-%dT%H:%M:%SZ}" if self.expires is not None else ""
        return f"<Credential {self.name!r}: {', '.join(self.__values)}{expires}>"

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError("a Credential cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a Credential cannot be changed")

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn:
        raise TypeError("a Credential cannot be pickled or copied: hand over its name and lease it there")

    def __getstate__(self) -> NoReturn:
        raise TypeError("a Credential has no state to show")

    def __copy__(self) -> NoReturn:
        raise TypeError("a Credential cannot be copied")

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise TypeError("a Credential cannot be copied")


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What a holder asks a source for."""

    name: str  # as in the settings
    settings: CredentialSettings
    holder: str = "securemfg"  # the step that asks first; names STS sessions
    tags: Mapping[str, str] = field(default_factory=dict)  # STS session tags; those of the settings win
    origin: str = "built-in"  # where the settings of this credential came from

    @property
    def kind(self) -> str:
        """Which service: `vault`, `sts` or `secrets_manager`."""
        for kind in ("vault", "sts", "secrets_manager"):
            if getattr(self.settings, kind) is not None:
                return kind
        raise CredentialError(f"credential {self.name!r} names no service ({self.origin})")  # settings refuse it

    @property
    def target(self) -> str:
        """The Vault path, role ARN or secret name."""
        return str(getattr(self.settings, self.kind))


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """What a source handed out. Durations are seconds from the moment the request was sent."""

    values: Mapping[str, Secret] = field(repr=False)
    ttl: float | None = None  # None: the service sets no end
    parent_ttl: float | None = None  # what is left of the token this lease hangs on
    lease_id: str | None = field(default=None, repr=False)
    # Extend it: the same values with a new ttl, or None when it cannot be and a new one is needed.
    renew: Callable[[], Grant | None] | None = field(default=None, repr=False)
    final: bool = False  # renewed for less than was asked: its end is near, replace it
    revoke: Callable[[float], None] | None = field(default=None, repr=False)  # takes a timeout, seconds
    ends: str | None = None  # what happens at its end when it cannot be revoked

    @property
    def life(self) -> float:
        """Seconds until the lease, or the token it hangs on, ends. Infinite when neither does."""
        return min(float("inf") if end is None else end for end in (self.ttl, self.parent_ttl))


class Source(Protocol):
    """A service that grants credentials. `lease` does the I/O; making a source does none."""

    def lease(self, wanted: Wanted, /) -> Grant:
        """Raises CredentialDenied when asking again will not help, else CredentialError."""
        ...

    def close(self, timeout: float = 2.0, /) -> None:
        """Give back what the source itself holds (its token), within `timeout` seconds. Never raises."""
        ...
