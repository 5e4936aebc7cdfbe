"""One call of an MLflow store on its way through us: by which rule, with what in place of its values, what comes back.

A layer (runs, traces, registry, ...) is two tables: what to do with a method's arguments, and how to open an entity.
"""

from __future__ import annotations

import hmac
import inspect
import json
import os
import secrets
import warnings
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

from securemfg import context
from securemfg.artifacts.sealing import Subject
from securemfg.artifacts.state import STATE
from securemfg.artifacts.tracking_tags import sealed_fields, stays
from securemfg.artifacts.tracking_values import REDACTED, TOLD, Opening, RootOf, Values
from securemfg.labels import Sensitivity
from securemfg.settings import Tracking

_AT_ONCE: Final = 8  # entities of a page opened side by side: each may need a key of its own
_BATCH: Final = 100  # tags in one call, MLflow's limit
_secret: Final = os.urandom(32)  # of this process: aliases are told apart, and not guessed
_SEARCHES: Final = ("filter_string", "order_by")


class Rule(NamedTuple):
    """What becomes of values that are written here and now."""

    tracking: Tracking
    strict: bool  # confidential and above: nothing stays readable that is not declared

    @property
    def plain(self) -> bool:
        return self.tracking is Tracking.ALLOW

    @property
    def redacts(self) -> bool:
        return self.tracking is Tracking.REDACT

    @property
    def names(self) -> bool:
        """Whether names that users give to runs are replaced: they are too short to be sealed."""
        return not self.plain and (self.strict or self.redacts)


PLAIN: Final = Rule(Tracking.ALLOW, strict=False)


def rule(*, carried: bool = True) -> Rule:
    """The rule here and now. `carried` False: on a thread that may have lost its step, the strictest.

    A table's entry holds for its own level. A single word holds for all that are encrypted, but `allow` stops below
    confidential: above, it has to be said level by level.
    """
    protection = STATE.protection
    if protection is None:
        return PLAIN
    lost = not carried and context.current() is None
    sensitivity = max(Sensitivity) if lost else protection.sensitivity()
    strict = sensitivity >= Sensitivity.CONFIDENTIAL
    setting = protection.tracking
    if isinstance(setting, Mapping):
        if sensitivity in setting:
            return Rule(setting[sensitivity], strict)
        setting = Tracking.SEAL
    if sensitivity < protection.encrypt_from:
        return PLAIN
    return Rule(Tracking.SEAL if strict and setting is Tracking.ALLOW else setting, strict)


class Call:
    """One call: its arguments by name, to be changed before `proceed`."""

    def __init__(self, store: Any, inner: Any, method: Callable[..., Any], layer: Layer, values: Values) -> None:
        self.store = store  # as MLflow sees it: what is called on it comes by here again
        self.inner = inner  # MLflow's own: what is called on it goes out as it is
        self.method = method
        self.layer = layer
        self.values = values
        self.rule = PLAIN
        self.arguments: dict[str, Any] = {}
        self._bound: inspect.BoundArguments | None = None

    def bind(self, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._bound = inspect.signature(self.method).bind(*args, **options)
        self.arguments = self._bound.arguments

    def get(self, name: str) -> Any:
        return self.arguments.get(name)

    def proceed(self, **changed: Any) -> Any:
        """MLflow's own method, with the arguments as they are now; what it returns, opened."""
        return self.opened(self.send(**changed))

    def send(self, **changed: Any) -> Any:
        assert self._bound is not None
        self.arguments.update(changed)
        return self.method(*self._bound.args, **self._bound.kwargs)

    def opened(self, found: Any) -> Any:
        return opened(found, self.layer.openers, Opening(self.values))

    def hide(self, value: Any, subject: Subject, **where: Any) -> Any:
        """What is kept in place of a value."""
        if value is None or value == "" or self.rule.plain:
            return value
        return REDACTED if self.rule.redacts else self.values.seal(str(value), subject, **where)

    def hide_tags(self, tags: Iterable[Any] | None, kind: str, object_id: str, **where: Any) -> list[Any]:
        """Tags, or params, as they are kept: whatever has a key and a value. Those that MLflow needs stay."""
        return [
            tag
            if stays(tag.key, tag.value)
            else with_value(tag, self.hide(tag.value, Subject(kind, object_id, tag.key), **where))
            for tag in tags or []
        ]


Handler: TypeAlias = Callable[[Call], Any]
Opener: TypeAlias = Callable[[Opening, Any], None]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What is done with a kind of store: by method name, and by an entity's class name."""

    handlers: Mapping[str, Handler]
    openers: Mapping[str, Opener]
    passing: frozenset[str]  # methods that carry no values: ids, names, times, numbers
    own: frozenset[str] = frozenset()  # private methods whose results are opened too


def opened(found: Any, openers: Mapping[str, Opener], opening: Opening) -> Any:
    """An entity, or a page or a pair with entities, with its sealed values opened in place."""
    if isinstance(found, tuple):
        for part in found:
            opened(part, openers, opening)
    elif isinstance(found, list):
        known = [(opener, one) for one in found if (opener := _opener(one, openers)) is not None]
        if len(known) > _AT_ONCE:
            with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="securemfg-tracking") as pool:
                for future in [pool.submit(context.carry(partial(opener, opening, one))) for opener, one in known]:
                    future.result()
        else:
            for opener, one in known:
                opener(opening, one)
    else:
        opener = _opener(found, openers)
        if opener is not None:
            opener(opening, found)
    return found


def _opener(entity: Any, openers: Mapping[str, Opener]) -> Opener | None:
    return next((openers[kind.__name__] for kind in type(entity).__mro__ if kind.__name__ in openers), None)


def open_tags(
    opening: Opening, tags: dict[str, Any] | None, kind: str, object_id: str, root: RootOf | None = None
) -> None:
    """A dict of tags or params, opened in place."""
    for key, value in list((tags or {}).items()):
        text = opening.text(value, Subject(kind, object_id, key), root)
        if text is not value and tags is not None:
            tags[key] = text


def with_value(tag: Any, value: Any) -> Any:
    """A tag, or a param, of the same class with another value."""
    return type(tag)(tag.key, value)


def limit(name: str, built_in: int | None = None) -> int | None:
    """How long MLflow lets a value be, of this version."""
    from mlflow.utils import validation

    found = getattr(validation, name, built_in)
    return int(found) if found is not None else None


def shown_name() -> str:
    """What is shown in place of a run's own name."""
    return f"run-{secrets.token_hex(4)}"


def alias(kind: str, value: Any) -> str:
    """An id in place of one that is too short to be sealed: of equal ones the same, in this process."""
    return f"{kind}-{hmac.digest(_secret, str(value).encode(), 'sha256').hex()[:16]}"


def pack(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)


def warn_of_sealed(call: Call) -> None:
    """A filter compares ciphertext: it would silently match nothing."""
    asked = [call.get(name) for name in _SEARCHES]
    texts = [
        text for one in asked for text in (one if isinstance(one, list | tuple) else [one]) if isinstance(text, str)
    ]
    for field in dict.fromkeys(sealed for text in texts for sealed in sealed_fields(text)):
        if TOLD.first("searched", field):
            warnings.warn(
                f"MLflow is asked to search or sort by {field}, which is sealed: the store compares ciphertext, so it "
                "matches nothing that is encrypted. Filter what comes back instead, or search by metrics, ids, names "
                "and times",
                stacklevel=6,
            )


def set_run_tags(call: Call, run_id: str, tags: list[Any]) -> None:
    """Set tags of a run as they are, as many as it takes."""
    for at in range(0, len(tags), _BATCH):
        call.inner.log_batch(run_id, [], [], tags[at : at + _BATCH])
