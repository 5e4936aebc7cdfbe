"""The two closed sets every other room speaks in: how sensitive data is, and which stage handles it."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from enum import Enum, StrEnum

from securemfg.errors import ConfigError, nearest


@functools.total_ordering
class Sensitivity(Enum):
    """How sensitive data is, ordered: public < internal < confidential < ip-sensitive < pii."""

    PUBLIC = "public"
    INTERNAL = "internal"
    CONFIDENTIAL = "confidential"
    IP_SENSITIVE = "ip-sensitive"
    PII = "pii"

    rank: int

    def __init__(self, _: str) -> None:
        self.rank = len(self.__class__.__members__)

    def __lt__(self, other: object) -> bool:
        if not isinstance(other, Sensitivity):
            return NotImplemented
        return self.rank < other.rank

    def __str__(self) -> str:
        return str(self.value)

    @classmethod
    def parse(cls, value: Sensitivity | str) -> Sensitivity:
        """The member named by `value`; `ip_sensitive` and other cases are accepted. Raises ConfigError."""
        if isinstance(value, cls):
            return value
        folded = str(value).strip().lower().replace("_", "-").replace(" ", "-")
        try:
            return cls(folded)
        except ValueError:
            raise ConfigError(f"unknown sensitivity {value!r}{nearest(folded, (m.value for m in cls))}") from None

    @classmethod
    def strictest(cls, values: Iterable[Sensitivity], default: Sensitivity | None = None) -> Sensitivity:
        """The highest of `values`; `default` (else internal) when there are none."""
        return max(values, default=default or cls.INTERNAL)


class Stage(StrEnum):
    """Where in the workflow a step stands."""

    INGEST = "ingest"
    PREPARATION = "preparation"
    TRAINING = "training"
    EVALUATION = "evaluation"
    INFERENCE = "inference"
    REPORTING = "reporting"

    @classmethod
    def parse(cls, value: Stage | str) -> Stage:
        """The member named by `value`. Raises ConfigError naming the nearest known stage."""
        if isinstance(value, cls):
            return value
        folded = str(value).strip().lower()
        try:
            return cls(folded)
        except ValueError:
            raise ConfigError(f"unknown stage {value!r}{nearest(folded, (m.value for m in cls))}") from None
