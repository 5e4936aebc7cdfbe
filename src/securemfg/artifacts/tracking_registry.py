"""The model registry: tags, descriptions and prompts. Nothing there has an artifact root: values carry their key.

They are bound to the model's name and the version's number. What is renamed is sealed anew. A version's number is known
only once it was made, so its values follow in a second call.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

from securemfg.artifacts.sealing import Subject, is_sealed
from securemfg.artifacts.tracking_calls import Call, Layer, limit, open_tags, with_value
from securemfg.artifacts.tracking_tags import stays
from securemfg.artifacts.tracking_values import Opening, is_marked
from securemfg.errors import EncryptionError
from securemfg.settings import Tracking

_MODEL: Final = "registered-model"
_VERSION: Final = "model-version"
_TEXT: Final = "description"


def _most() -> int | None:
    return limit("MAX_MODEL_REGISTRY_TAG_VALUE_LENGTH", 5000)


def _tag(call: Call, kind: str, of: str, tag: Any) -> Any:
    if stays(tag.key, tag.value):
        return tag
    return with_value(tag, call.hide(tag.value, Subject(f"{kind}-tag", of, tag.key), most=_most()))


def _described(call: Call, kind: str, of: str, text: str | None) -> Any:
    return call.hide(text, Subject(kind, of, _TEXT))


def _version(name: str, version: Any) -> str:
    return f"{name}/{version}"


# -- models -----------------------------------------------------------------------------------------------------------


def _create_model(call: Call) -> Any:
    name = call.get("name")
    changed: dict[str, Any] = {}
    if call.get("tags"):
        changed["tags"] = [_tag(call, _MODEL, name, tag) for tag in call.get("tags")]
    if call.get(_TEXT):
        changed[_TEXT] = _described(call, _MODEL, name, call.get(_TEXT))
    return call.proceed(**changed)


def _update_model(call: Call) -> Any:
    return call.proceed(description=_described(call, _MODEL, call.get("name"), call.get(_TEXT)))


def _tag_model(call: Call) -> Any:
    return call.proceed(tag=_tag(call, _MODEL, call.get("name"), call.get("tag")))


def _rename_model(call: Call) -> Any:
    """What is sealed is bound to the name: it is opened and sealed for the new one, and only then renamed."""
    name, new = call.get("name"), call.get("new_name")
    model = call.inner.get_registered_model(name)
    models = [(model, _MODEL, new), *((one, _VERSION, _version(new, one.version)) for one in _versions(call, name))]
    call.rule = call.rule._replace(tracking=Tracking.SEAL)  # what is sealed stays so, whatever holds here
    again = [change for one, kind, of in models for change in _resealed(call, one, kind, of)]
    renamed = call.send()
    for method, arguments in again:
        getattr(call.inner, method)(*arguments)
    return call.opened(call.inner.get_registered_model(new) if again else renamed)


def _resealed(call: Call, entity: Any, kind: str, of: str) -> list[tuple[str, tuple[Any, ...]]]:
    """The calls that put an entity's sealed values back under a new name."""
    keys = [key for key, value in entity._tags.items() if is_sealed(value)]
    described = is_sealed(entity.description)
    call.opened(entity)
    texts = [entity._tags[key] for key in keys] + ([entity.description] if described else [])
    if any(is_marked(text) for text in texts):
        raise EncryptionError(
            f"{entity.name} cannot be renamed here: its sealed values are bound to the name, and no key at hand opens "
            "them all; rename it where there is one"
        )
    new, _, number = of.partition("/") if kind == _VERSION else (of, "", "")
    at = (new, number) if number else (new,)
    method = "set_model_version_tag" if number else "set_registered_model_tag"
    changes = [(method, (*at, _tag(call, kind, of, _new_tag(kind, key, entity._tags[key])))) for key in keys]
    if described:
        method = "update_model_version" if number else "update_registered_model"
        changes.append((method, (*at, _described(call, kind, of, entity.description))))
    return changes


def _new_tag(kind: str, key: str, value: str) -> Any:
    from mlflow.entities.model_registry import ModelVersionTag, RegisteredModelTag

    return (ModelVersionTag if kind == _VERSION else RegisteredModelTag)(key, value)


def _versions(call: Call, name: str) -> list[Any]:
    found, token = [], None
    quoted = name.replace("'", "\\'") if '"' in name else name
    quote = "'" if '"' in name else '"'
    while True:
        page = call.inner.search_model_versions(
            filter_string=f"name = {quote}{quoted}{quote}", max_results=1000, order_by=None, page_token=token
        )
        found += page
        token = getattr(page, "token", None)
        if not token:
            return found


# -- versions ---------------------------------------------------------------------------------------------------------


def _create_version(call: Call) -> Any:
    name = call.get("name")
    tags, text = list(call.get("tags") or ()), call.get(_TEXT)
    later = [] if call.rule.plain else [tag for tag in tags if not stays(tag.key, tag.value)]
    hidden_text = bool(text) and not call.rule.plain
    if not later and not hidden_text:
        return call.proceed()
    for tag in later:  # what cannot be sealed is refused before anything is made
        _tag(call, _VERSION, "", tag)
    changed = {"description": None} if hidden_text else {}
    made = call.proceed(tags=[tag for tag in tags if tag not in later], **changed)
    of = _version(name, made.version)
    try:
        for tag in later:
            call.inner.set_model_version_tag(name, made.version, _tag(call, _VERSION, of, tag))
        if hidden_text:
            call.inner.update_model_version(name, made.version, _described(call, _VERSION, of, text))
    except BaseException:
        with contextlib.suppress(Exception):
            call.inner.delete_model_version(name, made.version)
        raise
    made._tags.update({tag.key: tag.value for tag in later})
    if hidden_text:
        made.description = text
    return made


def _update_version(call: Call) -> Any:
    of = _version(call.get("name"), call.get("version"))
    return call.proceed(description=_described(call, _VERSION, of, call.get(_TEXT)))


def _tag_version(call: Call) -> Any:
    return call.proceed(tag=_tag(call, _VERSION, _version(call.get("name"), call.get("version")), call.get("tag")))


# -- in ---------------------------------------------------------------------------------------------------------------


def _open_model(opening: Opening, model: Any) -> None:
    open_tags(opening, model._tags, f"{_MODEL}-tag", model.name)
    text = opening.text(model.description, Subject(_MODEL, model.name, _TEXT))
    if text is not model.description:
        model.description = text
    for version in model.latest_versions or ():
        _open_version(opening, version)


def _open_version(opening: Opening, version: Any) -> None:
    of = _version(version.name, version.version)
    open_tags(opening, version._tags, f"{_VERSION}-tag", of)
    text = opening.text(version.description, Subject(_VERSION, of, _TEXT))
    if text is not version.description:
        version.description = text
    params = getattr(version, "params", None)
    if params and any(is_sealed(param.value) for param in params):
        _open_params(version, params)


def _open_params(version: Any, params: list[Any]) -> None:
    """A server copies a logged model's params: they open where they belong."""
    from mlflow.tracking._tracking_service.utils import _get_store

    with contextlib.suppress(Exception):  # then they stay as they are, sealed
        known = _get_store().get_logged_model(version.model_id).params
        version._params = [with_value(param, known.get(param.key, param.value)) for param in params]


LAYER: Final = Layer(
    handlers={
        "create_registered_model": _create_model,
        "update_registered_model": _update_model,
        "set_registered_model_tag": _tag_model,
        "rename_registered_model": _rename_model,
        "create_model_version": _create_version,
        "update_model_version": _update_version,
        "set_model_version_tag": _tag_version,
    },
    openers={"RegisteredModel": _open_model, "ModelVersion": _open_version},
    passing=frozenset({"transition_model_version_stage", "set_registered_model_alias", "test_webhook"}),
)
