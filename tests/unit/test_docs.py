"""The pages say what the code does: every setting with its built-in value, every settings example, every error."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from securemfg import errors
from securemfg.config import load
from securemfg.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")])
ROW = re.compile(r"^\| `([\w.]+)` \| [^|]+ \| `([^`]*)` \| `(SECUREMFG_\w+)(?:__<\w+>)*` \|", re.MULTILINE)


def snippets(language: str) -> list[object]:
    fence = re.compile(rf"^```{language}\b[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [
        pytest.param(found[1], id=f"{page.relative_to(ROOT)}:{page.read_text()[: found.start()].count(chr(10)) + 1}")
        for page in PAGES
        for found in fence.finditer(page.read_text())
    ]


def test_settings_page_lists_every_setting_with_its_built_in_value(tmp_path: Path) -> None:
    page = (ROOT / "docs/reference/settings.md").read_text()
    written = {name: value for name, value, _ in ROW.findall(page)}
    config = load(environment={}, folder=tmp_path, lock_file=tmp_path / "none")
    assert written == {name: value for name, value, _ in config.shown() if name != "home"}


def test_settings_page_names_the_environment_variable_of_every_setting() -> None:
    page = (ROOT / "docs/reference/settings.md").read_text()
    for name, _, variable in ROW.findall(page):
        assert variable == "SECUREMFG_" + name.upper().replace(".", "__")


@pytest.mark.parametrize("text", snippets("toml"))
def test_settings_example_is_accepted(text: str) -> None:
    table = tomllib.loads(text)
    own = table.get("tool", {}).get("securemfg", table)
    Settings.model_validate(own.get("lock", own))


@pytest.mark.parametrize("text", snippets("python"))
def test_python_example_is_valid_python(text: str) -> None:
    ast.parse(text)


def test_error_tree_in_the_module_lists_every_error() -> None:
    for name in errors.__all__:
        if name != "nearest":
            assert re.search(rf"^ +{name}\b", errors.__doc__ or "", re.MULTILINE), name
