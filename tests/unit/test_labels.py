"""Sensitivity is ordered, Stage is closed, and both say what they know when asked for something else."""

from __future__ import annotations

import itertools
import pickle

import pytest

from securemfg.errors import ConfigError
from securemfg.labels import Sensitivity, Stage

ORDER = [
    Sensitivity.PUBLIC,
    Sensitivity.INTERNAL,
    Sensitivity.CONFIDENTIAL,
    Sensitivity.IP_SENSITIVE,
    Sensitivity.PII,
]


def test_sensitivities_are_ordered_from_public_to_pii() -> None:
    assert list(Sensitivity) == ORDER
    assert sorted({*ORDER}) == ORDER  # whatever order a set has
    for lower, higher in itertools.pairwise(ORDER):
        assert lower < higher
        assert higher > lower
        assert lower <= higher
        assert higher >= lower
        assert lower <= lower  # noqa: PLR0124 - reflexive
        assert not lower > higher


def test_sensitivity_is_not_compared_with_text() -> None:
    with pytest.raises(TypeError):
        assert Sensitivity.PII > "public"
    assert Sensitivity.PII != "pii"


@pytest.mark.parametrize("text", ["ip-sensitive", "ip_sensitive", " IP-Sensitive ", "IP SENSITIVE", "Ip_sensitive"])
def test_sensitivity_is_parsed_however_people_write_it(text: str) -> None:
    assert Sensitivity.parse(text) is Sensitivity.IP_SENSITIVE


@pytest.mark.parametrize("kind", [Sensitivity, Stage])
def test_every_member_parses_from_itself_and_its_text(kind) -> None:
    for member in kind:
        assert kind.parse(member) is member
        assert kind.parse(str(member)) is member
        assert pickle.loads(pickle.dumps(member)) is member


def test_unknown_sensitivity_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown sensitivity 'confidental'; did you mean 'confidential'\?"):
        Sensitivity.parse("confidental")
    with pytest.raises(ConfigError, match="known: confidential, internal, ip-sensitive, pii, public"):
        Sensitivity.parse("zzz")


def test_unknown_stage_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown stage 'trainng'; did you mean 'training'\?"):
        Stage.parse("trainng")
    with pytest.raises(ConfigError, match="unknown stage ''; known: evaluation"):
        Stage.parse("")


def test_strictest_is_the_highest_and_internal_when_there_is_none() -> None:
    assert Sensitivity.strictest([Sensitivity.PUBLIC, Sensitivity.PII, Sensitivity.INTERNAL]) is Sensitivity.PII
    assert Sensitivity.strictest([Sensitivity.PUBLIC]) is Sensitivity.PUBLIC
    assert Sensitivity.strictest([]) is Sensitivity.INTERNAL
    assert Sensitivity.strictest([], Sensitivity.PII) is Sensitivity.PII
    assert Sensitivity.strictest([], Sensitivity.PUBLIC) is Sensitivity.PUBLIC


def test_stage_is_text() -> None:
    assert f"{Stage.TRAINING}" == "training"
    assert Stage.parse(" Training ") is Stage.TRAINING
