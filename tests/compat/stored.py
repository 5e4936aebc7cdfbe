"""What a store holds, and what of it can be read."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

from tests.parts.canary import Hunt
from tests.parts.mlflow_server import Store

MESSAGE = b"\x02\x04\x78"  # version 2, suite 0x0478: how each of our files starts
ARTIFACT = re.compile(r"(?:^|/)(?P<id>(?:m-)?[0-9a-f]{32})/artifacts/(?P<path>.+)")


def artifacts(store: Store, owner: str = "") -> dict[str, bytes]:
    """The stored files of a run or model (of all, without one), records of run keys left out, by path in the store."""
    found = {path: (ARTIFACT.search(path), data) for path, data in store.stored().items()}
    return {
        path: data
        for path, (match, data) in found.items()
        if match and owner in match["id"] and "/.securemfg/" not in f"/{match['path']}"
    }


def at(store: Store, owner: str, path: str) -> str:
    """The path in the store of one artifact."""
    (found,) = [one for one in artifacts(store, owner) if ARTIFACT.search(one)["path"] == path]  # type: ignore[index]
    return found


def kinds(token: str, store: Store, scratch: Path, database: Path) -> set[str]:
    """The kinds of canaries that can be read in the store, the temporary folders and the tracking database."""
    search = Hunt({token: {}})
    search.look_at_all("store", store.stored())
    search.look_below("scratch", scratch)
    search.look_at_database("database", database)
    return set(search.found[token])


def log_model(flavour: Any, name: str, *args: Any, **options: Any) -> Any:
    """`flavour.log_model`: MLflow 2 takes the model's name as a path."""
    known = inspect.signature(flavour.log_model).parameters
    options["name" if "name" in known else "artifact_path"] = name
    return flavour.log_model(*args, **{"pip_requirements": ["scikit-learn"], **options})
