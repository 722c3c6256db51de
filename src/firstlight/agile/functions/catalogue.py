"""The functions of a node, by name. They survive restarts.

A change is prepared beside the current state, checked, and written in one transaction before it
takes effect. A change that fails changes nothing. A replaced version answers the events that it has
begun, and is removed after the last.

Over 500 lines: each change goes through the same lock, transaction and clean-up, and half of it is
the signatures of what callers may change.
"""

import asyncio
import fcntl
import logging
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from firstlight.agile.functions import settings
from firstlight.agile.functions.content import Content
from firstlight.agile.functions.errors import Changed, Conflict, Invalid, NotFound
from firstlight.agile.functions.events import Queue, clock
from firstlight.agile.functions.fetches import Fetches
from firstlight.agile.functions.mounts import Mounts
from firstlight.agile.functions.records import (
    LATEST,
    Alias,
    Code,
    DirectorySource,
    Event,
    ImageSettings,
    ImageSource,
    ModuleSource,
    Provisioned,
    Registration,
    Revision,
    Settings,
    Source,
    ZipSource,
)
from firstlight.agile.functions.store import Store
from firstlight.agile.functions.version import FunctionVersion
from firstlight.agile.logs import Position
from firstlight.agile.python.interpreter import ImportFailed
from firstlight.agile.runtime import Runtime
from firstlight.agile.serving import Answer, Serving
from firstlight.agile.serving.recent_output import unknown
from firstlight.errors import Failed, FirstlightError

_UNPACKER = 1 << 16
"""The user that unpacks, beyond the first of the functions': none of theirs."""
_NOTHING = Settings()
_KEEP_SECONDS = 5.0
_log = logging.getLogger(__name__)
Result = TypeVar("Result")


class Functions:
    """The registry of a runtime. An async context manager."""

    def __init__(self, runtime: Runtime, serving: Serving) -> None:
        self._runtime, self._serving = runtime, serving
        self.config = runtime.config
        self.directory = Path(self.config.store) / self.config.name
        self._lock = -1
        self._known: dict[str, Registration] = {}
        self._ready: dict[int, FunctionVersion] = {}
        self._using: Counter[int] = Counter()
        self._leaving: dict[int, Revision] = {}
        self._changing: dict[str, asyncio.Lock] = {}
        self._adding = 0
        self._fetches = Fetches()
        self._gate = asyncio.Lock()  # nothing is collected while something is added
        self._opening = asyncio.Lock()
        self._changed = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> "Functions":
        if (self.directory / "functions.db").exists():
            await self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._keeper:
            self._keeper.cancel()
            await asyncio.wait((self._keeper,))
        if self._lock >= 0:
            await self._queue.close()
            await asyncio.to_thread(self._close)

    def names(self) -> list[str]:
        """The functions by name."""
        return sorted(self._known)

    def get(self, name: str) -> Registration:
        """A function. Raises NotFound."""
        function = self._known.get(name)
        if function is None:
            raise NotFound(
                f"there is no function {name!r}", "list them: firstlight agile function list"
            )
        return function

    def find(self, name: str, qualifier: str = "") -> Revision:
        """A version of a function, by number, ``$LATEST`` or alias. Raises NotFound."""
        function = self.get(name)
        wanted = qualifier or LATEST
        alias = function.aliases.get(wanted)
        revision = function.revisions.get(alias.version if alias else wanted)
        if revision is None:
            raise NotFound(f"{name} has no version or alias {wanted!r}",
                           f"show them: firstlight agile function show {name}")  # fmt: skip
        return revision

    @asynccontextmanager
    async def using(self, name: str, qualifier: str = "") -> AsyncIterator[FunctionVersion]:
        """Hold a version: it stays in the context, whatever changes. Raises NotFound, Failed."""
        revision = self.find(name, qualifier)
        self._using[revision.number] += 1
        try:
            version = self._ready.get(revision.number) or await self._prepare(revision)
            yield self._with_limits(self.get(name), revision, version)
        finally:
            self._using[revision.number] -= 1
            if not self._using[revision.number]:
                del self._using[revision.number]
                if revision.number in self._leaving:
                    await self._retire()

    def _with_limits(
        self, function: Registration, revision: Revision, version: FunctionVersion
    ) -> FunctionVersion:
        """A version with its function's current limits."""
        warm = function.warm(revision.version)
        limits = function.concurrency, function.queue, warm
        if limits != (version.concurrency, version.queue, version.warm):
            version = msgspec.structs.replace(
                version, concurrency=function.concurrency, queue=function.queue, warm=warm
            )
            self._ready[revision.number] = version
        return version

    async def recent_output(
        self, name: str, position: Position, seconds: float
    ) -> tuple[bytes, Position]:
        """The recent output of a function's instances, from a position on. Raises Failed."""
        if name not in self._known:
            raise unknown(name)
        return await self._serving.recent_output.following(name, position, seconds)

    def running(self, name: str) -> int:
        """How many events of a function are being answered."""
        return self._serving.concurrency(name)

    async def invoke(
        self, name: str, event: bytes, qualifier: str = "", *, request_id: str,
        deadline: float | None = None, client_context: bytes | None = None,
        trace: str | None = None,
    ) -> tuple[Answer, FunctionVersion]:  # fmt: skip
        """Answer an event; returns its version, too. Raises NotFound, Throttled, Failed."""
        async with self.using(name, qualifier) as version:
            answer = await self._serving.invoke(
                version, event, request_id=request_id, deadline=deadline,
                client_context=client_context, trace=trace, arn=settings.qualified(name, qualifier),
            )  # fmt: skip
        return answer, version

    async def add(
        self, name: str, source: Source, given: Settings = _NOTHING, *,
        publish: bool = True, owner: str = "", tags: dict[str, str] | None = None,
        tries: bool = False,
    ) -> Registration:  # fmt: skip
        """Register a function. Raises Conflict, Invalid, BadCode.

        With ``tries``, its handler is first tried in a sandbox, and refused if it cannot be called.
        The Lambda API reports that at the first call.
        """
        _check_name(name)
        async with self._change(name):
            self._check_new(name)
            revision = await self._make_revision(name, given, source, owner, tries)
            function = Registration(
                name=name, revisions={LATEST: revision}, owner=owner, tags=tags or {},
                born=revision.number,
            )  # fmt: skip
            return await self._save(await self._publish(function) if publish else function)

    async def apply(
        self, name: str, source: Source, given: Settings, *, owner: str, tags: dict[str, str],
        concurrency: int | None = None, queue: int = 0,
    ) -> Registration:  # fmt: skip
        """Make a function exactly this, with one version, whatever its owner had under the name.

        Raises Conflict if it is another's, Invalid, BadCode.
        """
        _check_name(name)
        async with self._change(name):
            before = self._known.get(name)
            if before is None:
                self._check_new(name)
            elif before.owner != owner:
                raise Conflict(f"the node has a function {name} of another's",
                               f"remove it there: agile function remove {name}")  # fmt: skip
            self._check_reserve(concurrency, queue)
            revision = await self._make_revision(name, given, source, owner, tries=True)
            function = Registration(
                name=name, revisions={LATEST: revision}, owner=owner, tags=tags,
                concurrency=concurrency, queue=queue, published=before.published if before else 0,
                born=before.born if before else revision.number,
            )  # fmt: skip
            return await self._save(await self._publish(function))

    def expected(self, name: str, revision: int | None) -> Registration:
        """A function, if its latest revision is the given one. Raises NotFound, Changed."""
        function = self.get(name)
        if revision is not None and revision != function.latest.number:
            raise Changed(f"{name} was changed meanwhile", "read it again")
        return function

    async def update(
        self, name: str, source: Source | None = None, given: Settings = _NOTHING, *,
        publish: bool = True, expected: int | None = None, tries: bool = False,
    ) -> Registration:  # fmt: skip
        """Change a function's code or settings; ``expected`` is the revision to change.

        If code and settings are the same, ``$LATEST`` keeps its revision, and is published only if
        the newest version differs. ``tries`` is as in ``add``. Raises NotFound, Conflict, Invalid,
        BadCode.
        """
        async with self._change(name):
            function = self.expected(name, expected)
            before = function.latest
            merged = settings.merged(before.settings, given)
            code, image = before.code, before.image
            if source:
                if isinstance(source, ImageSource) != bool(before.image):
                    raise Invalid(
                        f"{name} is {'' if before.image else 'not '}made of an image: that stays",
                        "remove it, and add it again",
                    )  # fmt: skip
                code, image = await self._fetch(source, merged, function.owner)
            if _is_of(before, code, merged):
                if not publish or _newest(function):
                    return function
            else:
                revision = await self._check_revision(
                    name, merged, code, image, function.owner, tries
                )
                function = msgspec.structs.replace(
                    function, revisions={**function.revisions, LATEST: revision}
                )
            return await self._save(await self._publish(function) if publish else function)

    async def publish(
        self, name: str, description: str = "", expected: int | None = None
    ) -> Revision:
        """Make ``$LATEST`` a numbered version, unless the newest is the same."""
        async with self._change(name):
            function = self.expected(name, expected)
            if newest := _newest(function):
                return newest
            function = await self._save(await self._publish(function, description))
            return function.revisions[str(function.published)]

    async def remove(self, name: str, qualifier: str = "") -> None:
        """Remove a function, or one of its versions. Raises NotFound, Conflict."""
        async with self._change(name):
            function = self.get(name)
            if not qualifier:
                await self._write(lambda store: store.delete(name))
                del self._known[name]
                self._serving.recent_output.forget(name)
                await self._leave(function, None)
                return
            if qualifier.isdecimal() and qualifier not in function.revisions:
                raise NotFound(f"{name} has no version {qualifier}",
                               f"show them: firstlight agile function show {name}")  # fmt: skip
            if qualifier not in function.revisions or qualifier == LATEST:
                raise Invalid(f"{qualifier!r} of {name} is not a numbered version",
                              "remove the function, or a version by its number")  # fmt: skip
            if used := [
                each.name for each in function.aliases.values() if each.version == qualifier
            ]:
                raise Conflict(f"version {qualifier} of {name} is what the alias {used[0]} means",
                               "point the alias elsewhere first")  # fmt: skip
            rest = {key: each for key, each in function.revisions.items() if key != qualifier}
            kept = {key: each for key, each in function.provisioned.items() if key != qualifier}
            await self._save(msgspec.structs.replace(function, revisions=rest, provisioned=kept))

    async def set_alias(
        self, name: str, alias: str, version: str | UnsetType = UNSET,
        description: str | UnsetType = UNSET, *, new: bool | None = None,
        expected: int | None = None,
    ) -> Alias:  # fmt: skip
        """Point an alias at a version. ``new``: it must not exist (True), or must (False).

        Raises NotFound, Conflict, Invalid.
        """
        async with self._change(name):
            function = self.get(name)
            before = function.aliases.get(alias)
            if not settings.ALIAS.fullmatch(alias):
                raise Invalid(f"{alias[:100]!r} cannot be an alias",
                              "letters, digits, - and _, and not a number")  # fmt: skip
            if before and new:
                raise Conflict(f"{name} has an alias {alias!r} already", "update it")
            if not before and (new is False or version is UNSET):
                raise NotFound(f"{name} has no alias {alias!r}", "create it, with a version")
            if before and expected is not None and expected != before.revision:
                raise Changed(f"the alias {alias} of {name} was changed meanwhile", "read it again")
            changed = before or Alias(name=alias, version=LATEST)
            if version is not UNSET:
                if version not in function.revisions:
                    raise NotFound(f"{name} has no version {version!r}", "publish it first")
                changed = msgspec.structs.replace(changed, version=version)
            if description is not UNSET:
                changed = msgspec.structs.replace(changed, description=description)
            number = await self._write(lambda store: store.next("revision"))
            changed = msgspec.structs.replace(changed, revision=number)
            aliases = {**function.aliases, alias: changed}
            await self._save(msgspec.structs.replace(function, aliases=aliases))
            return changed

    async def remove_alias(self, name: str, alias: str) -> None:
        """Remove an alias. Raises NotFound."""
        async with self._change(name):
            function = self.get(name)
            if alias not in function.aliases:
                raise NotFound(f"{name} has no alias {alias!r}")
            rest = {key: each for key, each in function.aliases.items() if key != alias}
            kept = {key: each for key, each in function.provisioned.items() if key != alias}
            await self._save(msgspec.structs.replace(function, aliases=rest, provisioned=kept))

    async def reserve(self, name: str, concurrency: int | None, queue: int = 0) -> None:
        """Limit how many requests of a function are answered at once; None removes the limit.

        ``queue`` more wait for their turn. Raises NotFound, Invalid.
        """
        self._check_reserve(concurrency, queue)
        async with self._change(name):
            await self._save(
                msgspec.structs.replace(self.get(name), concurrency=concurrency, queue=queue)
            )

    async def provision(self, name: str, qualifier: str, instances: int | None) -> None:
        """Always keep this many instances of a version or an alias; None: as many as its settings
        say.

        Raises NotFound, Invalid.
        """
        most = min(settings.WARM_MOST, self.config.instances)
        if ":" in self.find(name, qualifier).version.handler:
            most = min(most, self.config.pools.fork.high)
        if instances is not None and not 1 <= instances <= most:
            raise Invalid(
                f"{instances} provisioned instances are out of range", f"from 1 to {most}"
            )
        async with self._change(name):
            function, version = self.get(name), self.find(name, qualifier).version
            if qualifier in ("", LATEST):
                raise Invalid(
                    f"{LATEST} cannot have provisioned instances", "name a version or an alias"
                )
            if version.kind in ("command", "wasm"):
                raise Invalid(f"{name} is of kind {version.kind}: it has no instances to keep")
            kept = {key: each for key, each in function.provisioned.items() if key != qualifier}
            if instances is not None:
                kept[qualifier] = Provisioned(instances, time.time())
            await self._save(msgspec.structs.replace(function, provisioned=kept))

    def ready(self, name: str, qualifier: str) -> int:
        """How many instances of a version are up. Raises NotFound."""
        return self._serving.up(self.find(name, qualifier).version)

    async def tag(self, name: str, tags: dict[str, str]) -> None:
        """Set a function's tags."""
        async with self._change(name):
            await self._save(msgspec.structs.replace(self.get(name), tags=tags))

    async def accept(
        self, name: str, event: bytes, qualifier: str = "", *, request_id: str,
        client_context: bytes | None = None, trace: str | None = None,
    ) -> None:  # fmt: skip
        """Accept an event, to be answered later. A restart does not lose it. Raises NotFound."""
        self.find(name, qualifier)
        now = clock()
        await self._queue.accept(Event(
            id=request_id, name=name, qualifier=qualifier, payload=event, context=client_context,
            trace=trace, accepted=now, due=now, born=self.get(name).born,
        ))  # fmt: skip

    async def waiting(self) -> int:
        """How many accepted events are not yet answered."""
        return await self._queue.waiting() if self._lock >= 0 else 0

    async def _answer_event(self, event: Event) -> Answer:
        if self.get(event.name).born != event.born:
            raise NotFound(f"the function {event.name} that accepted it was removed")
        answer, _ = await self.invoke(
            event.name, event.payload, event.qualifier, request_id=event.id,
            client_context=event.context, trace=event.trace,
        )  # fmt: skip
        return answer

    async def _keep(self) -> None:
        """Start the instances that are always kept: of aliases' versions, or of ``$LATEST``. These
        are what is called by name.
        """
        while True:
            self._changed.clear()
            for function in list(self._known.values()):
                for qualifier in {*(function.aliases or (LATEST,)), *function.provisioned}:
                    try:
                        await self._keep_warm(function.name, qualifier)
                    except FirstlightError as error:
                        _log.warning("%s is not kept warm: %s", function.name, error.message)
            with suppress(TimeoutError):
                async with asyncio.timeout(_KEEP_SECONDS):
                    await self._changed.wait()

    async def _keep_warm(self, name: str, qualifier: str) -> None:
        if self.get(name).warm(self.find(name, qualifier).version):
            async with self.using(name, qualifier) as version:
                await self._serving.keep(version)

    def _check_new(self, name: str) -> None:
        if name in self._known:
            raise Conflict(f"the function {name} exists already",
                           f"update it: firstlight agile function update {name}")  # fmt: skip
        if len(self._known) >= self.config.functions.most:
            raise Conflict(f"{len(self._known)} functions are registered, which is the most",
                           "remove some, or configure functions.most")  # fmt: skip

    def _check_reserve(self, concurrency: int | None, queue: int) -> None:
        if concurrency is not None and not 0 <= concurrency <= self.config.instances:
            raise Invalid(f"a concurrency of {concurrency} is out of range",
                          f"from 0 to {self.config.instances}")  # fmt: skip
        if not 0 <= queue <= self.config.instances or (queue and not concurrency):
            raise Invalid(f"a queue of {queue} is out of range",
                          f"from 0 to {self.config.instances}, with a concurrency")  # fmt: skip

    @asynccontextmanager
    async def _change(self, name: str) -> AsyncIterator[None]:
        """Change a function, one change at a time; at the end, remove what is no longer used."""
        await self._open()
        lock = self._changing.setdefault(name, asyncio.Lock())
        async with self._gate:
            self._adding += 1
        try:
            async with lock:
                yield
        finally:
            self._adding -= 1
            if not lock.locked():
                self._changing.pop(name, None)
            await asyncio.shield(asyncio.ensure_future(self._retire(collect=True)))

    async def _make_revision(
        self, name: str, given: Settings, source: Source, owner: str, tries: bool
    ) -> Revision:
        code, own = await self._fetch(source, given, owner)
        return await self._check_revision(name, given, code, own, owner, tries)

    async def _fetch(
        self, source: Source, given: Settings, owner: str
    ) -> tuple[Code, ImageSettings | None]:
        whose = owner, isinstance(source, ImageSource)  # a slow registry delays only images
        return await self._fetches.run(whose, lambda: _fetch(self._content, source, given))

    async def _check_revision(
        self, name: str, given: Settings, code: Code, own: ImageSettings | None, owner: str,
        tries: bool,
    ) -> Revision:  # fmt: skip
        """A revision whose files suggest that it can be started. Raises Failed."""
        number = await self._write(lambda store: store.next("revision"))
        revision = settings.made(name, number, given, code, own, owner)

        def check() -> tuple[Revision, FunctionVersion]:
            points = settings.points(revision.version)
            root = self._mounts.root(code, points)
            if more := settings.place_to_work(revision, root):
                points += more
                root = self._mounts.root(code, points)
            version = msgspec.structs.replace(revision.version, root=str(root))
            settings.check_root(version)
            return msgspec.structs.replace(revision, points=points), version

        revision, version = await asyncio.to_thread(check)
        await self._serving.try_mounts(version)
        if tries:
            await self._try_handler(version)
        return revision

    async def _try_handler(self, version: FunctionVersion) -> None:
        """Check that a version's handler can be called. Raises Failed."""
        try:
            await self._serving.try_handler(version)
        except ImportFailed as error:
            hint = error.hint or await asyncio.to_thread(settings.contents, version)
            raise Failed(error.message, hint) from None

    async def _publish(self, function: Registration, description: str = "") -> Registration:
        """Copy ``$LATEST`` to a numbered version."""
        number = await self._write(lambda store: store.next("revision"))
        version, latest = str(function.published + 1), function.latest
        numbered = msgspec.structs.replace(
            latest, number=number,
            version=msgspec.structs.replace(
                latest.version, version=version, revision=number,
                arn=settings.qualified(function.name, version),
            ),
            settings=msgspec.structs.replace(
                latest.settings, description=description or latest.settings.description
            ),
        )  # fmt: skip
        return msgspec.structs.replace(
            function, published=function.published + 1,
            revisions={**function.revisions, version: numbered},
        )  # fmt: skip

    async def _save(self, function: Registration) -> Registration:
        await self._write(lambda store: store.save(function))
        before = self._known.get(function.name)
        self._known[function.name] = function
        self._changed.set()
        if before:
            await self._leave(before, function)
        return function

    async def _leave(self, before: Registration, after: Registration | None) -> None:
        """Release the revisions that a function no longer has."""
        stays = {each.number for each in after.revisions.values()} if after else set()
        for revision in before.revisions.values():
            if revision.number not in stays:
                self._leaving[revision.number] = revision
                self._serving.replaced(revision.version)

    async def _retire(self, collect: bool = False) -> None:
        """End a revision after its last event, and remove what it alone used."""
        for number, revision in list(self._leaving.items()):
            if not self._using[number] and number in self._leaving:
                del self._leaving[number]
                version = self._ready.pop(number, revision.version)
                await self._serving.retire(version)
                collect = True
        if not collect:
            return
        async with self._gate:
            if not self._adding and not self._fetches.busy:
                await asyncio.to_thread(self._collect, self._revisions())

    def _revisions(self) -> list[Revision]:
        held = [
            revision
            for function in self._known.values()
            for revision in function.revisions.values()
        ]
        return [*held, *self._leaving.values()]

    def _collect(self, revisions: list[Revision]) -> None:
        self._mounts.keep(revisions)
        self._content.collect(each.code for each in revisions)

    async def _prepare(self, revision: Revision) -> FunctionVersion:
        root = await asyncio.to_thread(self._mounts.root, revision.code, revision.points)
        version = msgspec.structs.replace(revision.version, root=str(root))
        return self._ready.setdefault(revision.number, version)

    async def _write(self, write: Callable[[Store], Result]) -> Result:
        return await asyncio.to_thread(write, self._store)

    async def _open(self) -> None:
        async with self._opening:
            if self._lock < 0:
                self._known = await asyncio.to_thread(self._load_store)
                letters = self.directory / "dead-letters.jsonl"
                self._queue = Queue(self.config.events, self._store, letters, self._answer_event)
                self._keeper = asyncio.get_running_loop().create_task(self._keep())

    def _load_store(self) -> dict[str, Registration]:
        self.directory.mkdir(parents=True, exist_ok=True)
        self.directory.chmod(0o711)
        status = self.directory.stat()
        if status.st_uid != 0:
            raise Failed(
                f"the store {self.directory} is not root's", f"chown root {self.directory}"
            )
        lock = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._store = Store(self.directory / "functions.db")
            uid = self.config.identities.first + _UNPACKER
            self._content = Content(self.directory, self._store, uid)
            self._content.recover()
            place = self.config.directory / "roots"
            self._runtime.journal.record("mounts", str(place))
            self._mounts = Mounts(place, self._content)
            self._mounts.open()
            known = {each.name: each for each in self._store.functions()}
        except BlockingIOError:
            os.close(lock)
            raise Failed(f"another runtime uses the store {self.directory}",
                         "stop it, or configure another store") from None  # fmt: skip
        except BaseException:
            os.close(lock)
            raise
        self._lock = lock
        return known

    def _close(self) -> None:
        self._mounts.close()
        self._store.close()
        os.close(self._lock)
        self._lock = -1


def _check_name(name: str) -> None:
    if not settings.NAME.fullmatch(name):
        raise Invalid(f"{name[:100]!r} cannot be a function's name",
                      "1 to 64 letters, digits, - and _")  # fmt: skip


def _fetch(content: Content, source: Source, given: Settings) -> tuple[Code, ImageSettings | None]:
    """Put the code of a source on disk; blocks."""
    match source:
        case ImageSource(image):
            code, unpacked = content.add_image(image)
            return code, unpacked.configuration.config or ImageSettings()
        case ZipSource(path, data):
            return content.add_zip(path or "a zip file", data or Path(path)), None
        case DirectorySource(path, names, root):
            whole = settings.is_root(Path(path), given) if root is None else root
            return content.add_directory(Path(path), list(names), whole), None
        case ModuleSource(path):
            return content.add_module(Path(path)), None


def _newest(function: Registration) -> Revision | None:
    """The newest version, if it differs from ``$LATEST`` at most in its description."""
    newest, latest = function.revisions.get(str(function.published)), function.latest
    if newest is None:
        return None
    given = msgspec.structs.replace(latest.settings, description=newest.settings.description)
    return newest if _is_of(newest, latest.code, given) else None


def _is_of(revision: Revision, code: Code, given: Settings) -> bool:
    """Whether a revision has this code, wherever it came from, and these settings."""
    same = msgspec.structs.replace(code, source=revision.code.source) == revision.code
    return same and given == revision.settings
