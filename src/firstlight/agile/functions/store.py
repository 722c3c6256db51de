"""The registry's and the queue's database: SQLite, in its write-ahead mode. Everything here blocks.

A committed transaction survives the end of the process and a loss of power. A function is one row
with its versions and aliases, so its changes are atomic.
"""

import os
import sqlite3
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from firstlight.agile.functions.errors import DiskFull
from firstlight.agile.functions.records import Event, Registration
from firstlight.errors import Failed

_SCHEMA = 1
_TABLES = """
CREATE TABLE functions(name TEXT PRIMARY KEY, record BLOB NOT NULL) STRICT;
CREATE TABLE trees(
  number INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE, bytes INTEGER NOT NULL
) STRICT;
CREATE TABLE events(
  id TEXT PRIMARY KEY, name TEXT NOT NULL, record BLOB NOT NULL, attempts INTEGER NOT NULL,
  due REAL NOT NULL
) STRICT;
CREATE TABLE counters(name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT;
"""

_RESERVE = 2 << 20
"""Bytes of the disk that are allocated ahead for changes that remove something: to the log, and in
a file of their own for the database. An event is at most half as long."""
_LOG_MOST = 192
"""Pages of the log after which it begins anew."""
_EVENT_BYTES = 1024
"""What an event takes beside its record: a row, its place in indexes, what is left of a page."""
_OPENED = """
DROP INDEX IF EXISTS due;
CREATE INDEX IF NOT EXISTS turn ON events(name, due);
CREATE TEMP TABLE held(
  name TEXT PRIMARY KEY, events INTEGER NOT NULL, bytes INTEGER NOT NULL
) STRICT;
INSERT INTO held SELECT name, count(*), sum(length(record))
  FROM main.events GROUP BY name;
CREATE TEMP TRIGGER one_more AFTER INSERT ON main.events BEGIN
  INSERT INTO held VALUES (NEW.name, 1, length(NEW.record))
  ON CONFLICT DO UPDATE SET events = events + 1, bytes = bytes + excluded.bytes;
END;
CREATE TEMP TRIGGER one_less AFTER DELETE ON main.events BEGIN
  UPDATE held SET events = events - 1, bytes = bytes - length(OLD.record)
  WHERE name = OLD.name;
  DELETE FROM held WHERE name = OLD.name AND events = 0;
END;
"""
"""An index by function, so that one's events do not slow the search for another's, and what those
of each take, which the database keeps in step with them."""
_TAKEN = """
SELECT coalesce(sum(bytes + :each * events), 0),
       coalesce(sum(bytes + :each * events) FILTER (WHERE name=:name), 0) FROM held
"""
_DUE = """
SELECT record, attempts, due FROM held CROSS JOIN main.events ON id IN (
  SELECT id FROM main.events AS one WHERE one.name=held.name AND due<=:now
  AND id NOT IN (SELECT value FROM json_each(:running)) ORDER BY due LIMIT :most
) WHERE held.name NOT IN (SELECT value FROM json_each(:busy)) ORDER BY due LIMIT :most
"""
_NEXT = """
SELECT min((
  SELECT due FROM main.events AS one WHERE one.name=held.name
  AND id NOT IN (SELECT value FROM json_each(:running)) ORDER BY due LIMIT 1
)) FROM held WHERE name NOT IN (SELECT value FROM json_each(:busy))
"""
Excluded = tuple[list[str], list[str]]
"""Identities of events, and names of functions, that are not meant."""


class Store:
    """The database at a path, used by one process at a time. Raises Failed."""

    def __init__(self, path: Path) -> None:
        self._path, self._is_reserved = path, False
        self._lock = threading.Lock()
        try:
            self._base = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=FULL")
            self._base.execute(f"PRAGMA wal_autocheckpoint={_LOG_MOST}")
            [version] = self._base.execute("PRAGMA user_version").fetchone()
            if version == 0:
                self._base.executescript(f"BEGIN;{_TABLES}PRAGMA user_version={_SCHEMA};COMMIT")
            if version in (0, _SCHEMA):
                self._base.executescript(_OPENED)
            self._reserve()
        except sqlite3.Error as error:
            raise Failed(
                f"cannot open the registry {path}: {error}",
                "is it damaged? Move it away, and add the functions again",
            ) from error
        if version not in (0, _SCHEMA):
            raise Failed(f"the registry {path} is of schema {version}, not {_SCHEMA}",
                         "use the version of firstlight that made it")  # fmt: skip

    def _reserve(self) -> None:
        """Allocate the reserve, if the disk has room. SQLite ignores the end of a longer log."""
        self._is_reserved = True
        for path in (f"{self._path}-wal", self._path.with_suffix(".reserve")):
            with suppress(OSError), Path(path).open("ab") as file:
                os.posix_fallocate(file.fileno(), 0, _RESERVE)

    def _removing(self, statement: str, rows: Iterable[tuple[object, ...]]) -> None:
        """Change what is there, on a full disk by the reserve."""
        rows = list(rows)
        try:
            with self._transaction() as base:
                base.executemany(statement, rows)
        except DiskFull:
            with self._lock, suppress(sqlite3.Error):
                self._is_reserved = False
                self._path.with_suffix(".reserve").unlink(missing_ok=True)
                self._base.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
            with self._transaction() as base:
                base.executemany(statement, rows)

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._base.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._base.execute("BEGIN IMMEDIATE")
                try:
                    yield self._base
                    self._base.execute("COMMIT")
                except BaseException:
                    if self._base.in_transaction:
                        self._base.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                message = f"cannot write the registry {self._path}: {error}"
                if "full" in str(error):
                    raise DiskFull(message, "free space there") from error
                raise Failed(message) from error

    def functions(self) -> list[Registration]:
        """All functions."""
        with self._transaction() as base:
            rows = base.execute("SELECT name, record FROM functions ORDER BY name").fetchall()
        return [self._function(name, record) for name, record in rows]

    def _function(self, name: str, record: bytes) -> Registration:
        try:
            return msgspec.json.decode(record, type=Registration)
        except (msgspec.MsgspecError, ValueError) as error:
            raise Failed(f"cannot read the function {name} of the registry {self._path}: {error}",
                         "use the version of firstlight that made it") from error  # fmt: skip

    def save(self, function: Registration) -> None:
        """Write a function."""
        row = (function.name, msgspec.json.encode(function))
        with self._transaction() as base:
            base.execute("INSERT OR REPLACE INTO functions VALUES (?, ?)", row)

    def delete(self, name: str) -> None:
        """Remove a function."""
        self._removing("DELETE FROM functions WHERE name=?", [(name,)])

    def next(self, counter: str) -> int:
        """A number that was never used."""
        with self._transaction() as base:
            [row] = base.execute(
                "INSERT INTO counters VALUES (?, 1) ON CONFLICT DO UPDATE SET value=value+1 "
                "RETURNING value", (counter,),
            ).fetchall()  # fmt: skip
        return int(row[0])

    def trees(self) -> dict[str, tuple[int, int]]:
        """The number and size of each tree by its key."""
        with self._transaction() as base:
            rows = base.execute("SELECT key, number, bytes FROM trees").fetchall()
        return {key: (number, size) for key, number, size in rows}

    def add_tree(self, key: str, number: int, size: int) -> None:
        """Record a complete tree."""
        with self._transaction() as base:
            base.execute("INSERT INTO trees VALUES (?, ?, ?)", (number, key, size))

    def delete_trees(self, numbers: Iterable[int]) -> None:
        """Remove the record of trees that are about to be removed."""
        self._removing("DELETE FROM trees WHERE number=?", ((n,) for n in numbers))

    def accept(self, events: list[Event], most: int) -> set[str]:
        """Store events, at most ``most`` bytes in all; returns the identities of those without
        room.

        A function can take at most half of the room that others leave. Raises DiskFull before the
        disk is: an event is written twice, to the log and from there to the database.
        """
        refused = set()
        records = [msgspec.msgpack.encode(event) for event in events]
        disk = os.statvfs(self._path)
        if disk.f_bavail * disk.f_frsize < _RESERVE + 2 * sum(map(len, records)):
            raise DiskFull(f"the disk of the registry {self._path} has no room for events",
                           "free space there")  # fmt: skip
        if not self._is_reserved:
            self._reserve()
        with self._transaction() as base:
            for event, record in zip(events, records, strict=True):
                of = {"each": _EVENT_BYTES, "name": event.name}
                taken, own = base.execute(_TAKEN, of).fetchone()
                if own + len(record) + _EVENT_BYTES > most - taken:
                    refused.add(event.id)
                    continue
                row = event.id, event.name, record, event.attempts, event.due
                base.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?)", row)
        return refused

    def postpone(self, identity: str, attempts: int, due: float) -> None:
        """Record an event's number of attempts, and the time of the next."""
        self._removing(
            "UPDATE events SET attempts=?, due=? WHERE id=?", [(attempts, due, identity)]
        )

    def hasten(self, now: float, latest: float) -> None:
        """Make the events that are due after ``latest`` due now."""
        with self._transaction() as base:
            base.execute("UPDATE events SET due=? WHERE due>?", (now, latest))

    def done(self, identities: Iterable[str]) -> None:
        """Remove events that are done."""
        self._removing("DELETE FROM events WHERE id=?", ((each,) for each in identities))

    def due(self, now: float, most: int, without: Excluded) -> list[Event]:
        """The events that are due, the oldest first."""
        with self._transaction() as base:
            rows = base.execute(_DUE, {"now": now, "most": most, **_excluded(without)}).fetchall()
        return [
            msgspec.structs.replace(
                msgspec.msgpack.decode(record, type=Event), attempts=attempts, due=due
            )
            for record, attempts, due in rows
        ]

    def next_due(self, without: Excluded) -> float | None:
        """When the next event is due."""
        with self._transaction() as base:
            [row] = base.execute(_NEXT, _excluded(without)).fetchall()
        return None if row[0] is None else float(row[0])

    def waiting(self) -> int:
        """How many events are kept."""
        with self._transaction() as base:
            [row] = base.execute("SELECT coalesce(sum(events), 0) FROM held").fetchall()
        return int(row[0])


def _excluded(without: Excluded) -> dict[str, str]:
    identities, names = without
    return {
        "running": msgspec.json.encode(identities).decode(),
        "busy": msgspec.json.encode(names).decode(),
    }
