"""How a start that the generator saw becomes a sample."""

from firstlight.lab.backends.process import Process
from firstlight.lab.experiments import Case
from firstlight.lab.load import Outcome
from firstlight.lab.runner import sample
from firstlight.lab.schedule import Batch
from firstlight.model import Ending, GuestLog, Presentation

BATCH = Batch(Case({"instances": 1}, Process()), 0, traced=False)
DONE = Outcome(1000, 1010, 2000, 3000, 5, 6, 77, 0, False, "firstlight ready 1990\n")


def test_guest_without_root_has_failed() -> None:
    sound = sample(0, 0, 0, BATCH, DONE, DONE, None, 0, GuestLog("ticks"))
    assert (sound.ending, sound.stamps.ready, sound.error) == (Ending.READY, 1990, None)
    faulty = GuestLog("ticks", fault="OSv did not mount its root, zfs")
    first = sample(0, 0, 0, BATCH, DONE, DONE, None, 0, faulty)
    assert (first.ending, first.latency, first.error) == (Ending.FAILED, None, faulty.fault)
    assert first.guest == faulty, "what it did is kept"


def test_braces_of_a_strangers_subject_stay_as_they_are() -> None:
    words = "a {series} {eries} {0} {series.__class__} } of {experiment}"
    named = Presentation(subject=words).name("runc", "pod")
    assert named == "a runc {eries} {0} {series.__class__} } of pod"
