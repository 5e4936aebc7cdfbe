"""A value that hides itself: `.reveal()` is the only way out, so every use can be searched for.

This reduces exposure (logs, reprs, tracebacks, pickles, JSON); it does not erase memory: CPython
copies strings freely, so no zeroisation is claimed.
"""

from __future__ import annotations

from typing import Any, Final, NoReturn, SupportsIndex, final

__all__ = ["MASK", "Secret"]

MASK: Final = "[secure]"


@final
class Secret:
    """One secret text. Shows `[secure]` in repr, str and format; refuses pickle, copy, JSON and vars.

    Compare with `==` to another Secret only (constant time). Truth is whether it is non-empty.
    """

    __slots__ = ("__value",)

    def __init__(self, value: str | Secret) -> None:
        object.__setattr__(self, "_Secret__value", value.reveal() if isinstance(value, Secret) else value)

    def reveal(self) -> str:
        """The value itself. Call it where the value is used, and do not keep the result."""
        value: str = object.__getattribute__(self, "_Secret__value")
        return value

    def __repr__(self) -> str:
        return MASK

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str, /) -> str:
        return format(MASK, spec)

    def __bool__(self) -> bool:
        return bool(self.reveal())

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        import hmac

        return hmac.compare_digest(self.reveal().encode(), other.reveal().encode())

    __hash__ = None  # type: ignore[assignment]  # a hash of a guessable secret is a copy of it

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError("a Secret cannot be changed")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError("a Secret cannot be changed")

    def __dir__(self) -> list[str]:
        return ["reveal"]

    def __reduce_ex__(self, protocol: SupportsIndex, /) -> NoReturn:
        raise TypeError("a Secret cannot be pickled or copied: hand over a reference and lease it there")

    def __getstate__(self) -> NoReturn:
        raise TypeError("a Secret has no state to show")

    def __copy__(self) -> NoReturn:
        raise TypeError("a Secret cannot be copied")

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise TypeError("a Secret cannot be copied")

    def __iter__(self) -> NoReturn:
        raise TypeError("a Secret cannot be iterated; call .reveal()")
