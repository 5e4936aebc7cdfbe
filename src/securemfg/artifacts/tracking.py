"""The tracking layer: what MLflow's tracking store and registry keep is sealed on the way out, opened on the way in.

All of MLflow's client (fluent, `MlflowClient`, autologging, queues, traces) asks two registries for its stores. Their
`get_store` gives ours in place of MLflow's: an object that looks like the store, and hands every call to a layer.
MLflow's servers make their stores from registries of their own, and are not touched. Nothing here imports MLflow.
"""

from __future__ import annotations

import functools
import sys
import threading
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from securemfg import context
from securemfg.artifacts.state import STATE
from securemfg.errors import EncryptionError
from securemfg.transport.arrival import Watch

if TYPE_CHECKING:
    from securemfg.artifacts.tracking_calls import Layer
    from securemfg.artifacts.tracking_values import Values

__all__ = ["activate", "arrived", "check_ownership", "deactivate", "modules", "ownership"]

_TRACKING: Final = "mlflow.tracking._tracking_service.registry"
_REGISTRY: Final = "mlflow.tracking._model_registry.registry"
_QUEUE: Final = "mlflow.tracing.export.async_export_queue"
_PROVIDER: Final = "mlflow.tracing.provider"
# module, class -> where the one registry is that the client uses
_STORES: Final = {
    _TRACKING: ("TrackingStoreRegistry", "mlflow.tracking._tracking_service.utils", "_tracking_store_registry"),
    _REGISTRY: (
        "ModelRegistryStoreRegistry",
        "mlflow.tracking._model_registry.utils",
        "_model_registry_store_registry",
    ),
}
_DEFAULTS: Final = frozenset({"mlflow.store.tracking.abstract_store", "mlflow.store.model_registry.abstract_store"})
_READS: Final = (
    "get_",
    "search_",
    "list_",
    "batch_get",
    "find_",
    "query_",
    "delete_",
    "restore_",
    "calculate_",
    "resolve_",
)
_COMPOUND: Final = frozenset({"copy_model_version"})  # of any store: made of other calls

_lock = threading.RLock()
_replaced: list[tuple[Any, str, Any]] = []  # a class or module, an attribute of it, what stood there


# -- on and off -------------------------------------------------------------------------------------------------------


def activate() -> None:
    """Seal what is tracked from now on. Works before or after MLflow is imported; undone by `deactivate`."""
    _watch.start()
    others = STATE.check_ownership

    def check() -> None:
        others()
        check_ownership()

    STATE.check_ownership = check  # before each artifact too; taken back with the activation


def deactivate() -> None:
    """MLflow's registries and queues are as they were. What still holds a store of ours writes as MLflow would."""
    _watch.stop()
    with _lock:
        while _replaced:
            owner, name, original = _replaced.pop()
            setattr(owner, name, original)
    params = sys.modules.get("securemfg.artifacts.tracking_params")
    if params is not None:
        params.give_back_queues()
    values = sys.modules.get("securemfg.artifacts.tracking_values")
    if values is not None:
        values.TOLD.clear()


def ownership() -> dict[str, bool]:
    """For each of MLflow's registries of stores that is imported: whether it gives stores of ours."""
    found = {}
    for module, (name, _, _) in _STORES.items():
        kind = getattr(sys.modules.get(module), name, None)
        if kind is not None:
            found[name] = getattr(kind.get_store, "__securemfg__", False)
    return found


def check_ownership() -> None:
    """Raise EncryptionError unless every store that MLflow's client uses goes through securemfg."""
    lost = [name for name, ours in ownership().items() if not ours]
    if lost:
        raise EncryptionError(
            f"MLflow would bypass securemfg: {', '.join(lost)}.get_store was replaced after activation, so params, "
            "tags and traces would go out as they are; nothing was written. Remove what replaced it, or activate "
            "securemfg after it"
        )


def modules() -> tuple[str, ...]:
    """The modules of MLflow's that are taken over as they are imported."""
    return (*_STORES, _QUEUE, _PROVIDER)


def arrived(module: str) -> None:
    """Take over what `module` gives. Raises EncryptionError when it has not what is known of it."""
    with _lock:
        found = sys.modules[module]
        if module in _STORES:
            name, home, attribute = _STORES[module]
            kind = getattr(found, name, None)
            if not callable(getattr(kind, "get_store", None)):
                raise EncryptionError(f"this MLflow's {module} has no {name} that securemfg knows: nothing is sealed")
            _replace(
                kind, "get_store", lambda get: _giving_ours(get, home, attribute, model_registry=module == _REGISTRY)
            )
        elif module == _QUEUE:
            _replace(getattr(found, "AsyncTraceExportQueue", None), "put", _carrying)
        else:
            _replace(found, "get_otlp_exporter", _sealing_exporter)
            used = getattr(found, "should_use_otlp_exporter", None)
            if used is not None and used():
                found.reset()  # what exports already is made anew, with ours


def _replace(owner: Any, name: str, around: Callable[[Any], Any]) -> None:
    original = getattr(owner, name, None)
    if original is None or getattr(original, "__securemfg__", False):
        return
    replacement = around(original)
    replacement.__securemfg__ = True
    _replaced.append((owner, name, original))
    setattr(owner, name, replacement)


def _giving_ours(get: Callable[..., Any], home: str, attribute: str, *, model_registry: bool) -> Callable[..., Any]:
    @functools.wraps(get)
    def get_store(registry: Any, *args: Any, **options: Any) -> Any:
        store = get(registry, *args, **options)
        ours = registry is getattr(sys.modules.get(home), attribute, None)  # not a server's
        if STATE.protection is None or not ours or isinstance(store, SealedStore):
            return store
        return SealedStore(store, args[0] if args else options.get("store_uri"), model_registry=model_registry)

    return get_store


def _carrying(put: Callable[..., Any]) -> Callable[..., Any]:
    """A trace's export goes on in the step that the trace was made in."""

    @functools.wraps(put)
    def carried(queue: Any, task: Any, *args: Any, **options: Any) -> Any:
        if STATE.protection is not None and context.current() is not None:
            task.handler = context.carry(task.handler)
        return put(queue, task, *args, **options)

    return carried


def _sealing_exporter(make: Callable[..., Any]) -> Callable[..., Any]:
    """Traces that MLflow sends to a collector past its own store."""

    @functools.wraps(make)
    def made(*args: Any, **options: Any) -> Any:
        from securemfg.artifacts.tracking_spans import SealingExporter

        return SealingExporter(make(*args, **options))

    return made


# -- stores -----------------------------------------------------------------------------------------------------------


class SealedStore:
    """MLflow's store, for whoever asks; what is called on it goes through a layer while encryption is on."""

    def __init__(self, inner: Any, uri: str | None, *, model_registry: bool) -> None:
        from securemfg.artifacts.tracking_values import Values

        object.__setattr__(self, "_securemfg", (inner, Values(uri), _layer(model_registry=model_registry)))

    @property
    def __class__(self) -> type:  # MLflow asks what kind of store it has
        return type(self._securemfg[0])

    @__class__.setter
    def __class__(self, kind: type) -> None:
        raise TypeError("the class of a store cannot be changed")

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._securemfg[0], name, value)

    def __repr__(self) -> str:
        return f"<securemfg around {self._securemfg[0]!r}>"

    def __getattr__(self, name: str) -> Any:
        if name == "_securemfg":
            raise AttributeError(name)
        inner, values, layer = self._securemfg
        found = getattr(inner, name)
        if STATE.protection is None or not isinstance(found, types.MethodType | functools.partial):
            return found
        handler = layer.handlers.get(name)
        default: Any = getattr(found, "__func__", None)
        if handler is None and (name in _COMPOUND or getattr(default, "__module__", "") in _DEFAULTS):
            made = types.MethodType(default, self)  # made of other calls, which come by here
            return _through(self, inner, values, layer, made, name) if name.startswith(_READS) else made
        if handler is None and name.startswith("_") and name not in layer.own:
            return found
        return _through(self, inner, values, layer, found, name)


def _layer(*, model_registry: bool) -> Layer:
    if model_registry:
        from securemfg.artifacts.tracking_registry import LAYER

        return LAYER
    from securemfg.artifacts.tracking_layer import LAYER as TRACKING

    return TRACKING


def _through(store: Any, inner: Any, values: Values, layer: Layer, found: Any, name: str) -> Callable[..., Any]:
    from securemfg.artifacts.tracking_calls import Call, rule, warn_of_sealed

    @functools.wraps(found)
    def called(*args: Any, **options: Any) -> Any:
        if STATE.protection is None:
            return found(*args, **options)
        call = Call(store, inner, found, layer, values)
        call.bind(args, options)
        call.rule = rule(carried="trace" not in name and "span" not in name)
        handler = layer.handlers.get(name)
        if handler is not None:
            check_ownership()
            return handler(call)
        if name.startswith(_READS) or name in layer.own:
            if not call.rule.plain:
                warn_of_sealed(call)
        elif name not in layer.passing:
            _unknown(call, name)
        return call.proceed()

    return called


def _unknown(call: Any, name: str) -> None:
    """A method that may carry values in a way that nobody here knows: of confidential data it is refused."""
    protection = STATE.protection
    if call.rule.plain or protection is None:
        return
    refused = call.rule.strict and protection.enforcing
    reason = f"MLflow's {name}() writes to its tracking store in a way that securemfg does not seal"
    from securemfg.artifacts.tracking_values import TOLD

    if refused or TOLD.first("unknown", name):
        protection.emit(
            "artifact.refused",
            resource=name,
            kind="tracking",
            outcome="denied" if refused else "failure",
            reason=reason,
        )
    if refused:
        raise EncryptionError(
            f"{reason}: nothing was written. Call it in a step of sensitivity internal or below, or set "
            'mode = "observe" to go on and have it audited'
        )


_watch = Watch(modules(), arrived)
