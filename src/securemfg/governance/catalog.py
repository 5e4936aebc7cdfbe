"""The data-flow catalog: what data there is, how sensitive it is, who may use it, and where it goes.

The smallest catalog names its assets:

    data_assets:
      - name: production_sensor_data
        sensitivity: confidential

An asset may add description, owner, categories, subjects, purposes, legal_basis, retention (ISO 8601),
location and roles ({role: [actions]}). `flows` and `stores` are checked; organisation, zones, processors,
recipients and transfers are kept as declared (NIST CM-12, CM-13; GDPR Art. 30).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from securemfg.errors import CatalogError, nearest
from securemfg.governance.document import MAX_BYTES, Item, Problem, Unreadable, read
from securemfg.governance.fields import Table
from securemfg.labels import Sensitivity

__all__ = ["Asset", "Catalog", "Flow", "InvalidCatalog", "Store", "load_catalog"]

_SHOWN_PROBLEMS: Final = 20
_DECLARED: Final = ("organisation", "zones", "processors", "recipients", "transfers")
_SECTIONS: Final = ("version", "data_assets", "flows", "stores", *_DECLARED)
_ASSET_KEYS: Final = (
    "name", "sensitivity", "description", "owner", "categories", "subjects", "purposes", "legal_basis",
    "retention", "roles", "location",
)  # fmt: skip
_FLOW_KEYS: Final = ("from", "to", "data", "protocol", "tls", "auth", "purpose")
_STORE_KEYS: Final = ("uri", "encryption", "name", "data")


class InvalidCatalog(CatalogError):
    """A catalog with problems. `problems` holds all of them as (line, text); the message lists 20 of them."""

    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Asset:
    """One kind of data. `roles` is None when none are declared: then every role may use it (trust rule 7)."""

    name: str
    sensitivity: Sensitivity
    roles: Mapping[str, tuple[str, ...]] | None = None
    description: str | None = None
    owner: str | None = None
    categories: tuple[str, ...] = ()
    subjects: tuple[str, ...] = ()
    purposes: tuple[str, ...] = ()
    legal_basis: str | None = None
    retention: str | None = None  # ISO 8601 period, as written
    location: str | None = None
    line: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Flow:
    """A declared movement of data. `tls` is '1.3', '1.2', 'none', or None where the catalog does not say."""

    source: str
    target: str
    data: tuple[str, ...] = ()
    protocol: str | None = None
    tls: str | None = None
    auth: str | None = None
    purpose: str | None = None
    line: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Store:
    """A declared place where data rests."""

    uri: str
    encryption: str | None = None
    name: str | None = None
    data: tuple[str, ...] = ()
    line: int = 0


@dataclass(frozen=True, kw_only=True)
class Catalog:
    """A valid catalog. `digest`, the SHA-256 of the file in hex, is the policy version of decisions."""

    path: Path
    digest: str
    assets: Mapping[str, Asset]
    flows: tuple[Flow, ...] = ()
    stores: tuple[Store, ...] = ()
    version: str | None = None
    declared: Mapping[str, Any] = field(default_factory=dict)  # the sections that are kept, not interpreted

    def asset(self, name: str) -> Asset:
        """The asset of that name. Raises CatalogError naming the nearest one."""
        try:
            return self.assets[name]
        except KeyError:
            raise CatalogError(
                f"{_shown(self.path)}: unknown data asset {name!r}{nearest(name, self.assets)}; "
                "declare it under data_assets or correct the name"
            ) from None

    def __repr__(self) -> str:
        return f"Catalog({str(self.path)!r}, {len(self.assets)} assets, {self.digest[:12]})"


def load_catalog(path: Path, *, origin: str | None = None) -> Catalog:
    """Read and check the catalog at `path`. `origin` says where the path was set, for the message.

    Raises CatalogError when it cannot be read, InvalidCatalog listing every problem as `file:line: text`.
    """
    content = _content(path, origin)
    problems: list[Problem] = []
    catalog = None
    try:
        root = read(content.decode("utf-8-sig"), problems)
    except UnicodeDecodeError as error:
        problems.append((content.count(b"\n", 0, error.start) + 1, "not UTF-8 text"))
    except Unreadable as error:
        problems.append(error.problem)
    else:
        catalog = _catalog(path, content, root, problems)
    if catalog is None or problems:
        raise _invalid(path, problems)
    return catalog


def _content(path: Path, origin: str | None) -> bytes:
    where = f" ('catalog' set by {origin})" if origin else ""
    if not path.is_file():
        raise CatalogError(
            f"the catalog {path} does not exist or is no file{where}: create it, or correct the setting 'catalog'"
        )
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise CatalogError(
            f"the catalog {path} cannot be read{where}: {error.strerror}; check its owner and mode"
        ) from error
    if len(content) > MAX_BYTES:
        raise CatalogError(f"the catalog {path} is larger than {MAX_BYTES >> 20} MiB{where}: split it or shorten it")
    return content


def _invalid(path: Path, problems: list[Problem]) -> InvalidCatalog:
    ordered = sorted(problems)
    lines = [f"{_shown(path)}:{line}: {text}" for line, text in ordered[:_SHOWN_PROBLEMS]]
    if len(ordered) > _SHOWN_PROBLEMS:
        lines.append(f"... and {len(ordered) - _SHOWN_PROBLEMS} more problems")
    error = InvalidCatalog("\n".join(lines))
    error.problems = tuple(ordered)
    return error


def _shown(path: Path) -> Path:
    """The path as a reader in the working folder would write it."""
    try:
        return path.relative_to(Path.cwd())
    except (ValueError, OSError):
        return path


def _catalog(path: Path, content: bytes, root: Item, problems: list[Problem]) -> Catalog:
    top = Table(root, "the catalog", _SECTIONS, problems)
    assets: dict[str, Asset] = {}
    for item in top.items("data_assets", required=isinstance(root.value, Mapping)):
        asset = _asset(item, problems)
        if asset is None:
            continue
        if asset.name in assets:
            first = assets[asset.name].line
            problems.append((asset.line, f"data asset {asset.name!r} stands twice (first on line {first})"))
            continue
        assets[asset.name] = asset
    return Catalog(
        path=path,
        digest=hashlib.sha256(content).hexdigest(),
        assets=assets,
        flows=tuple(_flow(item, assets, problems) for item in top.items("flows")),
        stores=tuple(_store(item, assets, problems) for item in top.items("stores")),
        version=top.text("version"),
        declared={name: kept.plain() for name in _DECLARED if (kept := top.at(name)) is not None},
    )


def _asset(item: Item, problems: list[Problem]) -> Asset | None:
    table = Table(item, "this data asset", _ASSET_KEYS, problems)
    if not isinstance(item.value, Mapping):
        return None
    name = table.name("name")
    if name is not None:
        table.what = f"data asset {name!r}"
    asset = Asset(
        name=name or "",
        sensitivity=table.sensitivity("sensitivity"),
        roles=table.roles("roles"),
        description=table.text("description"),
        owner=table.text("owner"),
        categories=table.texts("categories"),
        subjects=table.texts("subjects"),
        purposes=table.texts("purposes"),
        legal_basis=table.text("legal_basis"),
        retention=table.retention("retention"),
        location=table.text("location"),
        line=item.line,
    )
    return asset if name else None


def _flow(item: Item, assets: Mapping[str, Asset], problems: list[Problem]) -> Flow:
    table = Table(item, "this flow", _FLOW_KEYS, problems)
    return Flow(
        source=table.name("from") or "",
        target=table.name("to") or "",
        data=table.named("data", assets),
        protocol=table.text("protocol"),
        tls=table.tls("tls"),
        auth=table.text("auth"),
        purpose=table.text("purpose"),
        line=item.line,
    )


def _store(item: Item, assets: Mapping[str, Asset], problems: list[Problem]) -> Store:
    table = Table(item, "this store", _STORE_KEYS, problems)
    return Store(
        uri=table.name("uri") or "",
        encryption=table.text("encryption"),
        name=table.text("name"),
        data=table.named("data", assets),
        line=item.line,
    )
