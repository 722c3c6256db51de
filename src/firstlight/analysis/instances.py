"""The threads and processes of starts, with their calls assigned to phases.

All starts of a chunk are processed at once: their threads lie end to end on one line (segments).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from firstlight.analysis import attribution, causes, phases
from firstlight.analysis.attribution import PHASE, Calls, Execs
from firstlight.analysis.columns import Columns
from firstlight.analysis.critical_path import Spans, Thread
from firstlight.analysis.segments import Flags, Integers, Intervals, Line, bounds
from firstlight.model import EndPoint, Sample, Step

_WIDE = 1 << 32
"""Above any pid or tid; multiplies a sample's number to make one key."""
_START, _EXEC, _EXIT = PHASE["process.start"], PHASE["exec"], PHASE["process.exit"]
_NO_TIME = np.iinfo(np.int64).max


@dataclass
class _Calls:
    """Threads' reported calls, in order of thread and start; ``codes`` as in Calls."""

    thread: Integers
    starts: Integers
    ends: Integers
    codes: Integers

    def take(self, chosen: Integers | Flags) -> "_Calls":
        return _Calls(
            self.thread[chosen], self.starts[chosen], self.ends[chosen], self.codes[chosen]
        )


@dataclass(frozen=True)
class Processes:
    """When the calls of each process begin, and the phases of the time before and after each.

    After the last call that is its own. Calls of process ``p`` are ``bounds[p]`` to
    ``bounds[p + 1]``. ``pauses`` and ``computes``: whether the time before a call can be a sleep,
    or a computation, for no call. It cannot in a helper program, which serves one phase; what a
    language's run-time computes as it starts, and what the payload does, has a phase already.
    """

    starts: Integers
    gaps: Integers
    gaps_after: Integers
    pauses: Flags
    computes: Flags
    bounds: Integers


class Instances:
    """Some starts, by sample in order of index, and by thread.

    ``sample``, ``tid``, ``pid``, ``process``, ``birth``, ``exit`` are of each thread; ``exit`` is
    the end of time where it is not known. A thread that is ``dropped`` is the load generator's.
    ``over`` is when the last thread of its process exited, and ``gone``, of a process whose exit is
    the end point, when that had left the CPU for good; both may be the end of time, too.
    ``call_starts``, on the line, are of the calls that have a phase of their own.
    """

    def __init__(self, spans: pl.DataFrame, samples: Sequence[Sample], end_point: EndPoint) -> None:
        """Each of ``samples`` was traced and ready."""
        self.samples = sorted(samples, key=lambda sample: sample.index)
        self.columns = Columns(spans, [sample.index for sample in self.samples])
        self._end_point = end_point
        self.packet_requests = [_packet_request(sample, end_point) for sample in self.samples]
        self._find_threads()
        self._relate()
        self._number_processes()
        self._find_ends()
        self.line = self._make_line()
        self.calls = self._read_calls()
        self._charge()
        self._waits()

    def threads_of(self, sample: int) -> dict[int, Thread]:
        """The threads of a sample by number, for the critical path."""
        threads = {}
        for thread in self._members[sample]:
            parent = int(self._parent[thread])
            threads[int(self.tid[thread])] = Thread(
                tid=int(self.tid[thread]),
                pid=int(self.pid[thread]),
                parent=None if parent < 0 or thread == self.roots[sample] else parent,
                birth=int(self.birth[thread]),
                exit=None if self.exit[thread] == _NO_TIME else int(self.exit[thread]),
                ended=None if self._ended[thread] == _NO_TIME else int(self._ended[thread]),
                waits=self._wait_starts[self._wait_bounds[thread] : self._wait_bounds[thread + 1]],
                wakes=self._wakes[self._wake_bounds[thread] : self._wake_bounds[thread + 1]],
                idle=self._idle.of(thread),
                sleeps=self._sleeps.of(thread),
            )
        return threads

    def members(self, sample: int) -> list[int]:
        """The numbers of a sample's threads."""
        return self._members[sample]

    def last(self, sample: int) -> int:
        """The number of the thread that reached the end point.

        For an exit it is the instance's first thread. Otherwise it is the payload, which has
        executed and made no other call yet; else the thread that next writes to a pipe to report it
        (the same pipe as the instance's first thread, if that writes to one). Where that was not
        traced, as behind a call over HTTP, it is the last thread that was.
        """
        columns, root = self.columns, self.samples[sample].pid
        numbers = {int(self.tid[thread]): thread for thread in self._members[sample]}
        if self._end_point == EndPoint.EXIT and root in numbers:
            return root
        end = self.begun(sample)
        execs = self._rows(sample, columns.rows["exec"])
        execs = execs[columns.start[execs] <= end]
        for row in execs[np.argsort(columns.start[execs], kind="stable")[::-1]].tolist():
            thread = numbers.get(int(columns.tid[row]))
            if thread is not None and self._has_exec[thread]:
                return int(columns.tid[row])
        writes = self._rows(sample, columns.pipe_writes)
        writes = writes[columns.start[writes] >= end]
        own = writes[columns.tid[writes] == root]
        if len(own):
            writes = writes[columns.peer[writes] == columns.peer[own[0]]]
        if len(writes):
            return int(columns.tid[writes[np.argmin(columns.start[writes])]])
        return root if root in numbers or not numbers else next(reversed(numbers))

    def begun(self, sample: int) -> int:
        """When the last step before the end point began: the packet, or the end point itself."""
        requested, ready = self.packet_requests[sample], self.samples[sample].stamps.ready
        assert ready is not None
        return ready if requested is None else requested

    def intervals(self, kind: str) -> Intervals:
        """The spans of a kind on the line of threads, each with its cause's code."""
        rows = self.columns.rows[kind]
        thread = self._thread[rows]
        return Intervals(
            self.line.at(thread, self.columns.start[rows]),
            self.line.at(thread, self.columns.end[rows]),
            self.columns.cause[rows],
        )

    def _rows(self, sample: int, rows: Integers) -> Integers:
        """The rows of one sample."""
        low, high = np.searchsorted(self.columns.sample[rows], (sample, sample + 1))
        return rows[low:high]

    def _find_threads(self) -> None:
        columns = self.columns
        key = columns.sample * _WIDE + columns.tid
        change = np.flatnonzero(np.diff(key, prepend=-1))
        self._thread = np.cumsum(np.diff(key, prepend=-1) != 0) - 1
        own = np.array(
            [number * _WIDE + sample.pid for number, sample in enumerate(self.samples)], np.int64
        )
        bare = own[~np.isin(own, key[change])]  # a start without any traced event
        self._keys = np.concatenate([key[change], bare])
        self._order = np.argsort(self._keys, kind="stable")
        self.sample, self.tid = self._keys // _WIDE, self._keys % _WIDE
        self.pid = np.concatenate([columns.pid[change], bare % _WIDE])
        self.roots = [self._find(key) for key in own.tolist()]

    def _find(self, key: int) -> int:
        place = int(np.searchsorted(self._keys, key, sorter=self._order))
        place = int(self._order[place]) if place < len(self._keys) else -1
        return place if place >= 0 and self._keys[place] == key else -1

    def _relate(self) -> None:
        """Births, parents and exits. The load generator is not part of an instance."""
        columns, count = self.columns, len(self._keys)
        self.birth, self._parent = np.zeros(count, np.int64), np.full(count, -1)
        forks = columns.rows["fork"]
        forks = forks[np.lexsort((columns.start[forks], columns.sample[forks]))]
        keys = columns.sample[forks] * _WIDE + columns.peer[forks]
        place = np.searchsorted(self._keys, keys, sorter=self._order)
        child = self._order[np.minimum(place, count - 1)] if count else place
        seen = (place < count) & (self._keys[child] == keys) if count else np.zeros(0, np.bool_)
        seen &= child < self._thread[-1] + 1 if len(self._thread) else False
        child, first = np.unique(child[seen], return_index=True)
        self.birth[child] = columns.start[forks][seen][first]
        self._parent[child] = columns.tid[forks][seen][first]
        self.exit = np.full(count, _NO_TIME)
        exits = columns.rows["exit"]
        self.exit[self._thread[exits]] = columns.start[exits]  # the last of several
        self.dropped = np.zeros(count, np.bool_)
        threads = np.bincount(self.sample, minlength=len(self.samples))
        for number, root in enumerate(self.roots):
            parent = max(int(self._parent[root]), 0)
            generator = self._find(number * _WIDE + parent) if threads[number] > 1 else -1
            if generator >= 0:
                self.dropped[generator] = True
        self._members: list[list[int]] = [[] for _ in self.samples]
        for thread in np.flatnonzero(~self.dropped).tolist():
            self._members[int(self.sample[thread])].append(thread)

    def _number_processes(self) -> None:
        key = self.sample * _WIDE + self.pid
        self._process_keys, self.process = np.unique(key, return_inverse=True)

    def _find_ends(self) -> None:
        columns, count = self.columns, len(self._process_keys)
        over, gone, latest = np.zeros((3, count), np.int64)
        np.maximum.at(over, self.process, self.exit)
        for kind, of in (("call", latest), ("exec", latest), ("gone", gone)):
            rows = columns.rows[kind]
            np.maximum.at(of, self.process[self._thread[rows]], columns.start[rows])
        over[over < latest] = _NO_TIME  # a thread went on under the number of one that exited
        self.over = over[self.process]
        self.gone = np.full(len(self._keys), _NO_TIME)
        if self._end_point == EndPoint.EXIT:
            gone = np.where(gone >= over, gone, _NO_TIME)
            self.gone[self.roots] = gone[self.process[self.roots]]

    def _process_of(self, rows: Integers) -> Integers:
        """The process number of each row; -1 if it has no thread."""
        key = self.columns.sample[rows] * _WIDE + self.columns.pid[rows]
        place = np.minimum(np.searchsorted(self._process_keys, key), len(self._process_keys) - 1)
        return np.where(self._process_keys[place] == key, place, -1)

    def _make_line(self) -> Line:
        stamps = [
            stamp
            for sample in self.samples
            for stamp in (sample.stamps.intended, sample.stamps.ready)
            if stamp is not None
        ] + [requested for requested in self.packet_requests if requested is not None]
        times = (self.columns.start, self.columns.end, np.array(stamps, np.int64))
        origin = min(int(each.min()) for each in times if len(each))
        latest = max(int(each.max()) for each in times if len(each))
        return Line(origin, latest - origin + 2)

    def _read_calls(self) -> _Calls:
        columns = self.columns
        rows = columns.rows["call"]
        calls = _Calls(
            self._thread[rows], columns.start[rows], columns.end[rows].copy(), columns.phase[rows]
        )
        self._ended = np.full(len(self._keys), _NO_TIME)
        ends, first = np.unique(calls.thread[calls.codes == _EXIT], return_index=True)
        self._ended[ends] = calls.starts[calls.codes == _EXIT][first]
        self._prolong(calls)
        calls.codes = attribution.answered(calls.codes, calls.thread)
        took, at_end = columns.took[rows], columns.at_end[rows]
        same = calls.thread[1:] == calls.thread[:-1]
        took[1:] |= at_end[1:] & took[:-1] & same
        process = self.process[calls.thread[took]]
        self._taking = self.line.at(process, calls.starts[took])
        calls = self._split(calls)
        return calls.take(~self.dropped[calls.thread])

    def _prolong(self, calls: _Calls) -> None:
        """Extend the call before each deferred wait to the end of the wait."""
        waits = self.columns.deferred
        if not len(calls.starts):
            return
        thread = self._thread[waits]
        place = np.searchsorted(
            self.line.at(calls.thread, calls.starts),
            self.line.at(thread, self.columns.start[waits]),
            side="right",
        ) - 1  # fmt: skip
        mine = (place >= 0) & (calls.thread[np.maximum(place, 0)] == thread)
        np.maximum.at(calls.ends, place[mine], self.columns.end[waits][mine])

    def _split(self, calls: _Calls) -> _Calls:
        """Divide calls that create a network namespace and others, by the kernel's marks.

        The kernel creates them in the order of create_new_namespaces: mount, uts, ipc, pid, cgroup,
        net, time. Each allocates per-CPU memory in its own functions.
        """
        columns, marks = self.columns, self.columns.rows["mark"]
        marked = self._thread[marks]
        instead: dict[int, list[tuple[int, int, int]]] = {}
        for row in columns.namespace_calls.tolist():
            thread = int(self._thread[row])
            low, high = np.searchsorted(marked, (thread, thread + 1))
            if low == high:
                continue
            start, end = int(columns.start[row]), int(columns.end[row])
            at = columns.start[marks[low:high]]
            inside = marks[low:high][(at >= start) & (at <= end)]
            edges = attribution.namespace_edges(
                columns.detail(row),
                start,
                list(zip(columns.start[inside].tolist(), columns.names(inside), strict=True)),
            )
            first, last = np.searchsorted(calls.thread, (thread, thread + 1))
            place = int(first) + int(np.searchsorted(calls.starts[first:last], start))
            stops = [*(edge for edge, _ in edges[1:]), end]
            instead[place] = [
                (begin, stop, PHASE[phase])
                for (begin, phase), stop in zip(edges, stops, strict=True)
            ]
        if not instead:
            return calls
        times = np.ones(len(calls.starts), np.int64)
        for place, parts in instead.items():
            times[place] = len(parts)
        split = calls.take(np.repeat(np.arange(len(times)), times))
        begins = np.cumsum(times) - times
        for place, parts in instead.items():
            for number, part in enumerate(parts, int(begins[place])):
                split.starts[number], split.ends[number], split.codes[number] = part
        return split

    def _charge(self) -> None:
        """Assign the calls of each process, and the time before each, to phases."""
        calls, columns, count = self.calls, self.columns, len(self._process_keys)
        process = self.process[calls.thread]
        starts = self.line.at(process, calls.starts)
        order = np.argsort(starts, kind="stable")
        sorted_calls = Calls(
            process[order], starts[order], self.line.at(process, calls.ends)[order],
            calls.codes[order], np.isin(starts, self._taking)[order],
        )  # fmt: skip
        execs = columns.rows["exec"]
        of = self._process_of(execs)
        execs, of = execs[of >= 0], of[of >= 0]
        began = self.line.at(of, columns.start[execs])
        in_order = np.argsort(began, kind="stable")
        ends = np.array([self.begun(number) for number in range(len(self.samples))], np.int64)
        sample = self._process_keys // _WIDE
        charged, gaps = attribution.charge(
            sorted_calls,
            Execs(of[in_order], began[in_order]),
            self.line.at(np.arange(count), ends[sample]),
        )
        edges = bounds(sorted_calls.process, count)
        pauses = np.ones(len(gaps), np.bool_)
        computes = (gaps != _EXEC) & ((gaps != _START) | (charged != _START))
        for helper, programs in self._helpers(execs, of):
            part = slice(edges[helper], edges[helper + 1])
            if part.start < part.stop:
                charged[part], gaps[part] = attribution.helped(
                    sorted_calls.starts[part], charged[part], gaps[part], programs
                )
                pauses[part] = computes[part] = False
        is_last = np.diff(sorted_calls.process, append=count) != 0
        gaps_after = np.where(is_last, charged, np.roll(gaps, -1))
        self.processes = Processes(sorted_calls.starts, gaps, gaps_after, pauses, computes, edges)
        self.call_starts = self.line.at(calls.thread, calls.starts)[calls.codes >= 0]
        calls.codes = np.empty_like(charged)
        calls.codes[order] = charged
        executing = calls.thread[calls.codes == _EXEC]
        self._has_exec = np.bincount(executing, minlength=len(self._keys)) > 0

    def _helpers(
        self, execs: Integers, process: Integers
    ) -> Iterator[tuple[int, list[tuple[int, int]]]]:
        """The processes that have executed a helper, with their programs from then on."""
        programs: dict[int, list[tuple[int, int]]] = {}
        for row, of in zip(execs.tolist(), process.tolist(), strict=True):
            if self.columns.pid[row] == self.samples[int(self.columns.sample[row])].pid:
                continue
            phase = phases.of_helper(self.columns.detail(row))
            if phase or of in programs:
                code = attribution.NEUTRAL if phase is None else PHASE[phase]
                at = self.line.at(np.int64(of), self.columns.start[row])  # type: ignore[arg-type]
                programs.setdefault(of, []).append((int(at), code))
        yield from programs.items()

    def _waits(self) -> None:
        columns, count = self.columns, len(self._keys)
        rows = columns.rows["blocked"]
        is_followed = columns.is_cause(lambda cause: cause.startswith(causes.PEER))
        is_parked = is_followed & columns.is_cause(lambda cause: cause != causes.VFORK)
        is_parked |= columns.is_cause(lambda cause: cause == causes.TIMEOUT)
        is_sleep = columns.is_cause(lambda cause: cause == causes.SLEEP)
        cause, thread = columns.cause[rows], self._thread[rows]
        self._wait_starts = columns.start[rows].tolist()
        self._wait_bounds = bounds(thread, count).tolist()
        wakes = rows[is_followed[cause]]
        self._wakes = list(
            zip(columns.end[wakes].tolist(), columns.peer[wakes].tolist(), strict=True)
        )
        self._wake_bounds = bounds(self._thread[wakes], count).tolist()
        self._sleeps = _Chosen.of_rows(self, rows[is_sleep[cause]])
        self._idle = _Chosen.of_rows(self, rows[is_sleep[cause] | is_parked[cause]])


@dataclass(frozen=True)
class _Chosen:
    """The starts and ends of some spans, and where those of each thread begin."""

    starts: list[int]
    ends: list[int]
    bounds: list[int]

    @classmethod
    def of_rows(cls, instances: Instances, rows: Integers) -> "_Chosen":
        columns = instances.columns
        edges = bounds(instances._thread[rows], len(instances._keys))
        return cls(columns.start[rows].tolist(), columns.end[rows].tolist(), edges.tolist())

    def of(self, thread: int) -> Spans:
        part = slice(self.bounds[thread], self.bounds[thread + 1])
        return self.starts[part], self.ends[part]


def _packet_request(sample: Sample, end_point: EndPoint) -> int | None:
    """When the first packet was requested, if it is the end point and a program reports it."""
    if end_point is not EndPoint.FIRST_PACKET or sample.guest:
        return None
    packets: list[Step] = [step for step in sample.steps if step.name == "packet"]
    return packets[0].start if packets else None
