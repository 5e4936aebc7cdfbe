"""Where local things lie: keys, journal, cache. Private to their owner, and ignored by git."""

from __future__ import annotations

from pathlib import Path

from securemfg.errors import ConfigError


def make_home(home: Path) -> None:
    """Make `home` and what is missing above it, 0700, with a `.gitignore`. Raises ConfigError.

    A full or read-only disk is no error here: the fail policy judges it at the first event.
    """
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        ignore = home / ".gitignore"
        if not ignore.exists():
            ignore.write_text("*\n", encoding="ascii")
    except (PermissionError, FileExistsError, NotADirectoryError) as error:
        raise ConfigError(
            f"{home} cannot be made: {error.strerror}; set SECUREMFG_HOME to a folder of your own"
        ) from error
    except OSError:
        return
