"""The runtime's experiments for real, at small size: what they measure, and that nothing stays."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.support.agile_host import on_host
from tests.support.laboratory import commands_of, marked, returning_home

from firstlight import store
from firstlight.agile.client import Client
from firstlight.errors import UnknownName, Unsupported
from firstlight.host import cgroups
from firstlight.host.workspace import Workspace
from firstlight.lab import runner
from firstlight.lab.backends.agile_parts import POOLS, WITHOUT, Ablated, Churn, Crowd
from firstlight.lab.backends.functions import KINDS, RUNC, Invoked
from firstlight.lab.backends.over_http import OverHttp
from firstlight.lab.experiments import Case, Experiment, Options
from firstlight.lab.experiments.ablation import ABLATION
from firstlight.lab.experiments.churn import CHURN
from firstlight.lab.experiments.density import DENSITY
from firstlight.lab.experiments.functions import FUNCTIONS
from firstlight.lab.experiments.platforms import PLATFORMS
from firstlight.lab.load import Poisson, offsets
from firstlight.model import Ending, Sample

Measure = Callable[[Experiment, list[Case]], store.Run]


def seen() -> dict[str, object]:
    """What of the host's own a run must not change."""
    return {
        "links": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "mounts": len(Path("/proc/self/mountinfo").read_text().splitlines()),
        "names": sorted(path.name for path in Path("/run/netns").glob("*")),
    }


@pytest.fixture
def measure(tmp_path: Path) -> Iterator[Measure]:
    """Runs cases of an experiment untraced; afterwards nothing of the run is left."""
    before = seen()
    runs: list[store.Run] = []

    def sample(experiment: Experiment, cases: list[Case]) -> store.Run:
        small = replace(experiment, cases=lambda _options: cases)
        plan = runner.Plan(small, Options((1,)), repetitions=1, seed=1, traced=False, deadline=30)
        with returning_home():
            runner.run(plan, tmp_path / "run")
        runs.append(store.read(tmp_path / "run"))
        return runs[0]

    yield sample
    for run in runs:
        name = run.header.run
        assert not marked(name)
        assert not [each for each in cgroups.hierarchies() if (each / cgroups.name(name)).exists()]
        assert not Path(f"/run/firstlight/{name}").exists()
        assert [sample.error for sample in run.samples if sample.ending is not Ending.READY] == []
    assert seen() == before


def churning(pools: str, rate: float) -> Case:
    return Case({"pools": pools, "rate": rate, "instances": 8}, Churn(pools), Poisson(rate))


def without(part: str) -> Case:
    return Case({"without": part, "instances": 1}, Ablated(part))


def by(run: store.Run, axis: str, value: object) -> list[Sample]:
    return [each for each in run.samples if each.point[axis] == value]


def test_churn_counts_what_the_pool_gave_and_made(measure: Measure) -> None:
    # At 10 a second it lasts longer than a refill is put off for requests.
    rates = {"full": 200, "refilling": 10, "empty": 200}
    run = measure(CHURN, [churning(name, rates[name]) for name in POOLS])
    counts = {name: by(run, "pools", name)[0].counts for name in POOLS}
    assert (counts["full"]["hits"], counts["full"]["misses"]) == (8, 0)
    assert counts["full"]["made"] == counts["full"]["refill"] == 0
    assert counts["full"]["fill"] > 0
    assert counts["refilling"]["hits"] + counts["refilling"]["misses"] == 8
    assert counts["refilling"]["made"] > 0
    assert counts["refilling"]["refill"] > 0
    assert (counts["empty"]["hits"], counts["empty"]["misses"]) == (0, 8)
    assert not any(each.counts for each in run.samples if each.instance)


def test_churn_is_open_loop_of_ending_instances(measure: Measure) -> None:
    run = measure(CHURN, [churning("full", 4)])
    asked = [each.stamps.intended for each in run.samples]
    due = offsets(Poisson(4), 8, run.header.seed)
    assert [at - asked[0] for at in asked] == [at - due[0] for at in due]
    ends = [each.stamps.stopped for each in run.samples]
    assert all(ends)
    assert min(end for end in ends if end) < asked[-1], "none ended before the last was asked for"


def test_density_measures_one_start_beside_those_that_are_up(measure: Measure) -> None:
    run = measure(DENSITY, [Case({"background": 12, "instances": 1}, Crowd(12))])
    assert len(run.samples) == 3, "three batches of one"


def test_those_that_are_up_stay_up_until_the_batch_is_left(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)

    async def main() -> None:
        place = Workspace(tmp_path, f"test-agile-{os.getpid()}", {"PATH": os.environ["PATH"]})
        with commands_of(Crowd(7), 1, place) as [start], Client(start.socket) as client:
            assert len(client.running()) == 7
            assert {pool.ready for pool in client.pools() if pool.high} == {1}
        assert list(tmp_path.iterdir()) == []

    on_host(main)


def test_ablation_hears_the_first_packet_whatever_is_left_out(measure: Measure) -> None:
    run = measure(ABLATION, [without(part) for part in WITHOUT])
    for each in run.samples:
        [packet] = [step for step in each.steps if step.name == "packet"]
        assert each.stamps.ready
        assert each.stamps.ready < packet.start < packet.end
    assert len(run.header.notes) == len(WITHOUT)


def test_what_is_left_out_is_left_to_the_start(measure: Measure) -> None:
    """A start without a prepared part takes its step itself; told by the runtime's own stamps."""
    run = measure(ABLATION, [without(name) for name in ("nothing", "sandboxes")])
    ready, parts = (
        [{step.name for step in each.steps} for each in by(run, "without", name)]
        for name in ("nothing", "sandboxes")
    )
    assert all("clone" not in names and "exec" in names for names in ready)
    assert all({"clone", "network", "exec"} <= names for names in parts)


@pytest.mark.parametrize("name", [RUNC, "agile", *KINDS])
def test_each_kind_of_function_begins_and_ends(measure: Measure, name: str) -> None:
    cases = [case for case in FUNCTIONS.cases(Options((1, 4))) if case.point["function"] == name]
    try:
        cases[0].backend.probe()
    except Unsupported as error:
        pytest.skip(error.message)
    run = measure(FUNCTIONS, cases)
    assert len(run.samples) == 3 + 4
    for each in run.samples:
        assert each.exit_status == 0, each
        if name in KINDS:
            start, handler = each.steps
            assert each.stamps.intended <= start.start <= start.end == each.stamps.ready
            assert start.end == handler.start <= handler.end
    assert any(name in note for note in run.header.notes)


def test_a_name_that_is_none_of_ours_lists_those_that_are() -> None:
    for backend, valid in ((Churn("?"), POOLS), (Ablated("?"), WITHOUT), (Invoked("?"), KINDS)):
        with pytest.raises(UnknownName) as caught:
            backend.probe()
        assert str(caught.value.hint).endswith(", ".join(valid))


def test_a_function_is_invoked_over_http_by_boto3(measure: Measure) -> None:
    backend = OverHttp("Python, warm")
    try:
        backend.probe()
    except Unsupported as error:
        pytest.skip(str(error))
    run = measure(PLATFORMS, [Case({"platform": backend.name, "instances": 2}, backend)])
    assert len(run.samples) == 2
    assert all(each.latency and each.latency > 0 for each in run.samples)
