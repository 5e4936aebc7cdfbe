"""The catalog says what is wrong with it, where, and what was probably meant."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import pytest

from securemfg.errors import CatalogError
from securemfg.governance.catalog import InvalidCatalog, load_catalog
from securemfg.governance.document import MAX_BYTES, MAX_DEPTH
from securemfg.labels import Sensitivity
from tests.unit.governance import plant

MINIMAL = """\
data_assets:
  - name: production_sensor_data
    sensitivity: confidential
"""


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "data_flow.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def problems(folder: Path, text: str | bytes) -> tuple[tuple[int, str], ...]:
    with pytest.raises(InvalidCatalog) as caught:
        load_catalog(written(folder, text))
    return caught.value.problems


def test_the_smallest_catalog_loads_unchanged(own_place):
    path = written(own_place, MINIMAL)
    catalog = load_catalog(path)
    asset = catalog.asset("production_sensor_data")
    assert asset.sensitivity is Sensitivity.CONFIDENTIAL
    assert asset.roles is None
    assert catalog.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_every_documented_field_is_kept(own_place):
    catalog = plant.catalog(own_place)
    asset = catalog.asset("production_sensor_data")
    assert asset.roles == {
        "MLResearcher": ("training", "evaluation"),
        "DataEngineer": ("ingest", "preparation"),
        "Service": ("inference",),
    }
    assert (asset.owner, asset.retention, asset.categories) == ("line-2", "P1Y", ("machine.telemetry",))
    assert catalog.flows[1].source == "feature store"
    assert catalog.flows[0].tls == "1.3"
    assert catalog.version == "3"
    assert catalog.declared["organisation"] == {"controller": "Example Presses", "dpo": "dpo@example.com"}


def test_a_misspelt_sensitivity_is_named_with_file_line_and_the_nearest_one(own_place):
    path = written(own_place, MINIMAL.replace("confidential", "confidental"))
    with pytest.raises(CatalogError) as caught:
        load_catalog(path)
    assert str(caught.value) == "data_flow.yaml:3: unknown sensitivity 'confidental'; did you mean 'confidential'?"


@pytest.mark.parametrize(
    ("text", "line", "part"),
    [
        ("data_asset:\n  - name: a\n", 1, "unknown key 'data_asset' in the catalog; did you mean 'data_assets'?"),
        ("version: 1\n", 1, "the catalog has no 'data_assets'"),
        ("data_assets:\n  - name: a\n    sensitvity: pii\n", 3, "did you mean 'sensitivity'?"),
        ("data_assets:\n  - name: a\n", 2, "data asset 'a' has no 'sensitivity'; one of public, internal"),
        ("data_assets:\n  - sensitivity: pii\n", 2, "this data asset has no 'name'"),
        ("data_assets:\n  - name: ''\n    sensitivity: pii\n", 2, "is empty"),
        ('data_assets:\n  - name: "a\\nb"\n    sensitivity: pii\n', 2, "must be printable"),
        (MINIMAL + "  - name: production_sensor_data\n    sensitivity: pii\n", 4, "stands twice (first on line 2)"),
        (MINIMAL + "    sensitivity: public\n", 4, "key 'sensitivity' stands twice (first on line 3)"),
        (MINIMAL + "data_assets: []\n", 4, "key 'data_assets' stands twice (first on line 1)"),
        (MINIMAL + "    retention: 90d\n", 4, "must be an ISO 8601 period like 'P90D' or 'P1Y', got '90d'"),
        (MINIMAL + "    retention: P\n", 4, "ISO 8601"),
        (MINIMAL + "    roles: [MLResearcher]\n", 4, "must map each role to its actions"),
        (MINIMAL + "    roles: {MLResearcher: [trainning]}\n", 4, "did you mean 'training'?"),
        (MINIMAL + "    roles:\n      '*': [training]\n", 5, "name the roles"),
        (MINIMAL + "flows:\n  - {from: a, to: b, tls: 1.1}\n", 5, "must be '1.3', '1.2' or 'none', got '1.1'"),
        (MINIMAL + "flows:\n  - {from: a, to: b, data: [sensor_data]}\n", 5, "unknown asset 'sensor_data'"),
        (MINIMAL + "flows: {from: a}\n", 4, "must be a list"),
        (MINIMAL + "stores:\n  - encryption: cmk\n", 5, "this store has no 'uri'"),
        ("data_assets:\n  - a\n", 2, "must be a mapping"),
        ("- a\n", 1, "must be a mapping"),
        ("", 1, "the file is empty"),
        ("data_assets: []\n---\ndata_assets: []\n", 2, "a second document"),
        ("data_assets: [\n", 2, "not valid YAML"),
        (b"data_assets:\n  - name: \xff\n", 2, "not UTF-8"),
        (b"data_assets:\n  - name: \x07\n", 2, "not valid YAML"),
        ("? [a]\n: b\n", 1, "a key must be text"),
        ("data_assets: !!python/object/apply:os.system [id]\n", 1, "is not allowed"),
        ("a: &x [*x]\n", 1, "refers to itself"),
    ],
)
def test_each_mistake_is_named_on_its_line(own_place, text, line, part):
    found = problems(own_place, text)
    assert any(at == line and part in said for at, said in found), found


def test_all_problems_are_reported_together_in_line_order(own_place):
    text = "data_assets:\n" + "".join(f"  - name: a{n}\n    sensitivity: secret\n" for n in range(30))
    with pytest.raises(InvalidCatalog) as caught:
        load_catalog(written(own_place, text))
    lines = str(caught.value).splitlines()
    assert len(caught.value.problems) == 30
    assert len(lines) == 21
    assert lines[0].startswith("data_flow.yaml:3: unknown sensitivity 'secret'")
    assert lines[-1] == "... and 10 more problems"
    assert pickle.loads(pickle.dumps(caught.value)).problems == caught.value.problems


def test_scalars_mean_what_was_written(own_place):
    text = MINIMAL + "    location: NO\n    description: 1.10\nversion: 2026-01-01\n"
    catalog = load_catalog(written(own_place, text))
    asset = catalog.asset("production_sensor_data")
    assert (asset.location, asset.description, catalog.version) == ("NO", "1.10", "2026-01-01")


def test_an_alias_may_repeat_roles(own_place):
    text = (
        "data_assets:\n"
        "  - {name: a, sensitivity: internal, roles: &staff {Operator: [read]}}\n"
        "  - {name: b, sensitivity: internal, roles: *staff}\n"
    )
    assert load_catalog(written(own_place, text)).asset("b").roles == {"Operator": ("read",)}


def test_alias_bombs_are_refused_before_they_expand(own_place):
    lines = ["zones:", "  a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"  a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "more than 500000 values" in problems(own_place, "\n".join(lines))[0][1]


@pytest.mark.parametrize("opening", ["[", "- ", "{a: "])
def test_deep_nesting_is_refused_without_crashing(own_place, opening):
    said = problems(own_place, "zones: \n " + opening * 200_000)[0][1]
    assert f"deeper than {MAX_DEPTH}" in said or "maximum nesting depth" in said  # PyYAML's own limit, from 6.0.4 on


def test_an_oversized_file_is_refused(own_place):
    path = written(own_place, MINIMAL + "#" * MAX_BYTES)
    with pytest.raises(CatalogError, match="larger than 5 MiB"):
        load_catalog(path)


def test_a_missing_catalog_says_where_it_was_set(own_place):
    with pytest.raises(CatalogError, match=r"does not exist.*set by pyproject\.toml"):
        load_catalog(own_place / "absent.yaml", origin="pyproject.toml")


def test_an_unknown_asset_names_the_nearest_one(own_place):
    with pytest.raises(CatalogError, match=r"unknown data asset 'press_recipe'; did you mean 'press_recipes'\?"):
        plant.catalog(own_place).asset("press_recipe")


def test_a_big_catalog_loads_whole(own_place):
    assets = "".join(f"  - {{name: asset_{n}, sensitivity: internal, roles: {{A: [read]}}}}\n" for n in range(500))
    flows = "".join(f"  - {{from: asset_{n % 500}, to: x, data: asset_{n % 500}, tls: 1.3}}\n" for n in range(1000))
    catalog = load_catalog(written(own_place, f"data_assets:\n{assets}flows:\n{flows}"))
    assert (len(catalog.assets), len(catalog.flows)) == (500, 1000)
