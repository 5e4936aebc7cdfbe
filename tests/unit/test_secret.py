"""A Secret hides everywhere but at `.reveal()`."""

from __future__ import annotations

import copy
import json
import logging
import pickle
import traceback

import orjson
import pytest

from securemfg._secret import MASK, Secret

CANARY = "canary-7f3a91"


@pytest.fixture
def secret() -> Secret:
    return Secret(CANARY)


def test_reveal_is_the_way_out(secret: Secret) -> None:
    assert secret.reveal() == CANARY


@pytest.mark.parametrize(
    "shown",
    [
        repr,
        str,
        lambda s: f"{s}",
        lambda s: f"{s!r:>30}",
        lambda s: f"{s:>40}",
        lambda s: "%s %r" % (s, s),  # noqa: UP031
        "{}".format,
        lambda s: repr([s]),
        lambda s: repr({"password": s}),
        lambda s: str(dir(s)),
    ],
)
def test_text_of_a_secret_shows_the_mask(secret: Secret, shown) -> None:
    assert CANARY not in shown(secret)


def test_mask_takes_a_format_width(secret: Secret) -> None:
    assert f"{secret:>12}" == f"{MASK:>12}"


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickle_is_refused(secret: Secret, protocol: int) -> None:
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(secret, protocol)


@pytest.mark.parametrize(
    "leak", [copy.copy, copy.deepcopy, json.dumps, orjson.dumps, vars, list, lambda s: s.__getstate__()]
)
def test_copy_json_vars_and_iteration_are_refused(secret: Secret, leak) -> None:
    with pytest.raises(TypeError) as refused:
        leak(secret)
    assert CANARY not in str(refused.value)


def test_json_with_a_fallback_to_text_shows_the_mask(secret: Secret) -> None:
    assert json.dumps({"password": secret}, default=str) == f'{{"password": "{MASK}"}}'
    assert CANARY not in orjson.dumps({"password": secret}, default=repr).decode()


def test_logging_and_traceback_locals_show_the_mask(secret: Secret, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("x").warning("password %s %r", secret, {"it": secret})
    try:
        password = secret
        raise ValueError("no", password)
    except ValueError as error:
        text = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert MASK in text
    assert CANARY not in caplog.text + text


def test_secret_cannot_be_changed(secret: Secret) -> None:
    with pytest.raises(AttributeError):
        secret.value = "other"
    with pytest.raises(AttributeError):
        del secret.value
    assert secret.reveal() == CANARY


def test_secrets_compare_with_secrets_only(secret: Secret) -> None:
    assert secret == Secret(CANARY)
    assert secret != Secret("other")
    assert secret != CANARY
    assert Secret("ü") == Secret("ü")


def test_secret_has_no_hash(secret: Secret) -> None:
    with pytest.raises(TypeError):
        hash(secret)


def test_truth_is_whether_it_is_empty(secret: Secret) -> None:
    assert secret
    assert not Secret("")


def test_secret_of_a_secret_is_the_same_value(secret: Secret) -> None:
    assert Secret(secret).reveal() == CANARY
