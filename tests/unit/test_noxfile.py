"""noxfile.py must be readable by Pythons that are too old, or they cannot say so; CI must call what exists."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOXFILE = (ROOT / "noxfile.py").read_text()


def sessions() -> set[str]:
    return {
        node.name
        for node in ast.parse(NOXFILE).body
        if isinstance(node, ast.FunctionDef) and any("session" in ast.unparse(d) for d in node.decorator_list)
    }


def test_noxfile_is_readable_by_old_pythons() -> None:
    ast.parse(NOXFILE, feature_version=(3, 6))


def test_nothing_but_the_standard_library_is_imported_before_nox_is_found() -> None:
    before, _, _ = NOXFILE.partition('if __name__ == "__main__":')
    allowed = {
        "hashlib",
        "importlib.util",
        "importlib.metadata",
        "json",
        "os",
        "pathlib",
        "shutil",
        "subprocess",
        "sys",
    }
    assert set(re.findall(r"^ *(?:import|from) ([\w.]+)", before, re.MULTILINE)) <= allowed


def test_ci_calls_only_sessions_that_exist() -> None:
    lists = dict(re.findall(r"^(PHASES|COMPAT)=\(([^)]*)\)", (ROOT / ".ci/run").read_text(), re.MULTILINE))
    assert lists.keys() == {"PHASES", "COMPAT"}
    assert set(" ".join(lists.values()).split()) <= sessions()


def test_contributing_names_only_sessions_that_exist() -> None:
    named = re.findall(r"noxfile\.py -s (\w+)", (ROOT / "CONTRIBUTING.md").read_text())
    assert named
    assert set(named) <= sessions()
