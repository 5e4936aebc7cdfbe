"""Logged models: params and tags, sealed for the run key of the model's own artifact root."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from typing import Any, Final

from securemfg.artifacts.location import Root
from securemfg.artifacts.sealing import Subject
from securemfg.artifacts.tracking_calls import Call, Handler, Opener, open_tags, with_value
from securemfg.artifacts.tracking_tags import stays
from securemfg.artifacts.tracking_values import Opening, RootOf, root_at

_TAG: Final = "logged-model-tag"
_PARAM: Final = "logged-model-param"


def _create(call: Call) -> Any:
    """The model's id is known only once it was made: its values follow."""
    if call.rule.plain:
        return call.proceed()
    tags, params = list(call.get("tags") or ()), list(call.get("params") or ())
    if call.rule.redacts:
        return call.proceed(tags=call.hide_tags(tags, _TAG, ""), params=_params(call, "", params, None))
    later = [tag for tag in tags if not stays(tag.key, tag.value)]
    model = call.proceed(tags=[tag for tag in tags if tag not in later], params=[])
    try:
        root = functools.partial(root_at, model.artifact_location)
        if params:
            call.inner.log_logged_model_params(model.model_id, _params(call, model.model_id, params, root))
        if later:
            call.inner.set_logged_model_tags(model.model_id, call.hide_tags(later, _TAG, model.model_id, root=root))
    except BaseException:
        with contextlib.suppress(Exception):
            call.inner.delete_logged_model(model.model_id)
        raise
    model.tags.update({tag.key: tag.value for tag in later})
    model.params.update({param.key: str(param.value) for param in params})
    return model


def _params(call: Call, model_id: str, params: list[Any], root: RootOf | None) -> list[Any]:
    return [with_value(one, call.hide(one.value, Subject(_PARAM, model_id, one.key), root=root)) for one in params]


def _root(call: Call) -> RootOf:
    model_id = call.get("model_id")

    @functools.cache
    def root() -> Root:
        return root_at(call.inner.get_logged_model(model_id).artifact_location)

    return root


def _set_tags(call: Call) -> Any:
    return call.proceed(tags=call.hide_tags(call.get("tags"), _TAG, call.get("model_id"), root=_root(call)))


def _log_params(call: Call) -> Any:
    return call.proceed(params=_params(call, call.get("model_id"), list(call.get("params") or ()), _root(call)))


def _open(opening: Opening, model: Any) -> None:
    root = functools.partial(root_at, model.artifact_location)
    open_tags(opening, model.params, _PARAM, model.model_id, root)
    open_tags(opening, model.tags, _TAG, model.model_id, root)


HANDLERS: Final[Mapping[str, Handler]] = {
    "create_logged_model": _create,
    "set_logged_model_tags": _set_tags,
    "log_logged_model_params": _log_params,
}
OPENERS: Final[Mapping[str, Opener]] = {"LoggedModel": _open}
PASSING: Final = frozenset({"finalize_logged_model", "set_model_versions_tags"})
