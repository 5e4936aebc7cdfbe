"""The command line's edges: what `init` must not replace, terminals and pipes, and errors for programs."""

from __future__ import annotations

import os
import pty
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import securemfg
from securemfg.config import load
from tests.parts.trail import CATALOG, events, settings

# -- init


def test_init_makes_settings_catalog_and_a_private_key_that_a_step_can_use(cli) -> None:
    ran = cli("init", "--no-backup")
    assert ran.code == 0, ran.err
    assert "made securemfg.toml" in ran.out
    assert "no backup of the key" in ran.err
    assert stat.S_IMODE(Path(".securemfg").stat().st_mode) == 0o700
    assert stat.S_IMODE(Path(".securemfg/keys/default.key").stat().st_mode) == 0o600
    assert Path(".securemfg/.gitignore").read_text() == "*\n"
    assert len(events("key.created")) == 1
    with securemfg.step("training", assets=["production_sensor_data"]) as step:
        assert str(step.sensitivity) == "confidential"


def test_init_does_not_replace_settings_in_pyproject(cli) -> None:
    Path("pyproject.toml").write_text(
        '[tool.securemfg]\nmode = "observe"\n[tool.securemfg.keys]\ndefault = "local:my.key"\n'
    )
    ran = cli("init", "--no-backup")
    assert ran.code == 0, ran.err
    assert not Path("securemfg.toml").exists()
    assert len(Path("my.key").read_bytes()) == 32
    assert load().settings.keys == {"default": "local:my.key"}


def test_init_where_nothing_can_be_made_is_a_settings_error(cli) -> None:
    Path("file").write_text("")
    assert cli("init", "file", "--no-backup").code == 2


def test_init_asks_for_a_backup_on_a_terminal(tmp_path: Path) -> None:
    parent, child = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "securemfg", "init"], stdin=child, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        os.close(child)
        os.write(parent, f"{tmp_path / 'typed.key'}\n".encode())
        assert process.stdout is not None
        said = process.stdout.read().decode()
    os.close(parent)
    assert process.returncode == 0, said
    assert "loses the data" in said.replace("\n", " ")
    assert (tmp_path / "typed.key").read_bytes() == Path(".securemfg/keys/default.key").read_bytes()


# -- config show


def test_config_show_says_when_the_embedded_default_serves(cli) -> None:
    ran = cli("config", "show")
    assert ran.code == 0
    assert "the embedded default serves" in ran.err
    assert cli("config", "show", "--json").json["embedded_default"] is True


# -- catalog validate


def test_a_valid_catalog_is_listed(cli) -> None:
    settings(catalog=CATALOG)
    ran = cli("catalog", "validate")
    assert ran.code == 0
    assert "production_sensor_data" in ran.out
    assert "every role (none declared)" in ran.out
    listed = cli("catalog", "validate", "--json").json
    assert [asset["sensitivity"] for asset in listed["assets"]] == ["confidential", "pii", "internal"]
    assert len(listed["digest"]) == 64


def test_a_typo_in_a_catalog_is_exit_2_with_file_line_and_the_nearest_word(cli) -> None:
    path = Path("flows.yaml")
    path.write_text("data_assets:\n  - name: a\n    sensitivty: internal\n")
    ran = cli("catalog", "validate", path, "--json")
    assert ran.code == 2
    assert ran.json["error"]["type"] == "CatalogError"
    assert "flows.yaml:3" in ran.json["error"]["message"]
    assert "sensitivity" in ran.json["error"]["message"]


@pytest.mark.parametrize("arguments", [(), ("none.yaml",)])
def test_a_catalog_that_is_not_there_is_exit_2(cli, arguments: tuple[str, ...]) -> None:
    ran = cli("catalog", "validate", *arguments)
    assert ran.code == 2
    assert ran.err.startswith("error ")


# -- the whole


def test_an_unknown_verb_is_exit_2_and_json_when_asked(cli) -> None:
    ran = cli("encrpt", "x")
    assert ran.code == 2
    assert "No such command 'encrpt'" in ran.err
    ran = cli("audit", "shpi", "--json")
    assert (ran.code, ran.json["error"]["exit"]) == (2, 2)
    assert cli("encrypt", "--nope", "x").code == 2


def test_no_verb_shows_the_help_with_every_verb(cli) -> None:
    ran = cli("--help")
    assert ran.code == 0
    for verb in ("init", "config", "catalog", "keys", "encrypt", "decrypt", "inspect", "audit", "report", "doctor"):
        assert f" {verb} " in ran.out
    assert "--install-completion" in ran.out
    assert "--show-completion" in ran.out
    assert "Usage" in cli().out


def test_an_unexpected_failure_is_exit_4_with_its_traceback(cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the unforeseen")

    monkeypatch.setattr("securemfg.config.load", broken)
    ran = cli("config", "show", "--json")
    assert ran.code == 4
    assert ran.json["error"] == {"type": "RuntimeError", "message": "the unforeseen", "exit": 4}
    assert "Traceback" in ran.err


def coloured(*arguments: str, **environment: str) -> bytes:
    """What a terminal would get."""
    child_environment = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
    parent, child = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "securemfg", *arguments],
        env={**child_environment, "TERM": "xterm-256color", **environment},
        stdin=subprocess.DEVNULL,
        stdout=child,
        stderr=subprocess.DEVNULL,
    ) as process:
        os.close(child)
        said = b""
        while True:
            try:
                more = os.read(parent, 65536)
            except OSError:  # the terminal is gone: it has ended
                break
            if not more:
                break
            said += more
    os.close(parent)
    assert process.returncode == 0, said
    return said


def test_a_terminal_gets_colours_unless_they_are_declined() -> None:
    assert b"\x1b[1m" in coloured("config", "show")
    plain = coloured("--no-color", "config", "show")
    assert b"\x1b[3" not in plain
    assert b"\x1b[3" not in coloured("config", "show", NO_COLOR="1")
    assert b"tls.floor" in plain


def test_python_dash_m_is_the_command() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "securemfg", "config", "nope"], capture_output=True, text=True, timeout=60, check=False
    )
    assert ran.returncode == 2
    assert "nope" in ran.stderr


def test_a_closed_pipe_is_a_clean_end() -> None:
    command = f"{sys.executable} -m securemfg config show --json | true; exit ${{PIPESTATUS[0]}}"
    ran = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (ran.returncode, ran.stderr) == (0, "")


# -- files


@pytest.fixture
def two_of_a_name() -> tuple[Path, Path]:
    """Two files called model.bin, in folders of their own."""
    made = Path("a/model.bin"), Path("b/model.bin")
    for path in made:
        path.parent.mkdir()
        path.write_text(str(path))
    return made


def test_two_files_that_would_become_one_are_refused_before_either_is_touched(cli, two_of_a_name) -> None:
    ran = cli("encrypt", *two_of_a_name, "-o", "out", "--force", "--json")
    assert ran.code == 2
    assert "would both become out/model.bin.esdk" in ran.json["error"]["message"]
    assert not Path("out").exists()
    assert cli("encrypt", *two_of_a_name).code == 0  # beside their sources they do not meet


def test_a_file_where_the_folder_for_several_belongs_is_a_usage_error(cli, two_of_a_name) -> None:
    Path("out").write_text("mine")
    Path("c").write_text("c")
    ran = cli("encrypt", two_of_a_name[0], "c", "-o", "out")
    assert ran.code == 2
    assert "must be a folder for several files" in " ".join(ran.err.split())
    assert Path("out").read_text() == "mine"


def test_a_name_without_its_suffix_stops_several_before_the_first_is_done(cli) -> None:
    Path("a").write_text("x")
    cli("encrypt", "a")
    Path("a").unlink()
    assert cli("decrypt", "a.esdk", "other").code == 2
    assert not Path("a").exists()


def test_without_settings_a_missing_default_key_is_made_and_with_them_it_is_not(cli) -> None:
    Path("a").write_text("x")
    assert cli("encrypt", "a").code == 0
    settings("[audit]\n", "elsewhere")
    os.chdir("elsewhere")
    Path("a").write_text("x")
    settings('mode = "enforce"\n')
    ran = cli("encrypt", "a", "--json")
    assert (ran.code, ran.json["error"]["type"]) == (2, "KeyUnavailable")
    assert not Path("a.esdk").exists()
