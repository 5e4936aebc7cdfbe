"""What MLflow's tracking stores keep, read past MLflow: every column of a database, every file of a folder."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any


def rows(database: Path) -> Iterator[tuple[str, str]]:
    """`table.column` and value, of every value that is not null."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type='table'")]
        for table in names:
            cursor = connection.execute(f'SELECT * FROM "{table}"')
            columns = [column[0] for column in cursor.description]
            for row in cursor:
                yield from (
                    (f"{table}.{column}", str(value))
                    for column, value in zip(columns, row, strict=True)
                    if value is not None
                )


def holding(database: Path, word: str) -> set[str]:
    """The columns in which `word` stands readable."""
    return {column for column, value in rows(database) if word in value}


def ask(database: Path, query: str, *values: Any) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database, timeout=30)) as connection:
        found = connection.execute(query, values).fetchall()
        connection.commit()
    return found
