"""A start that hangs is recorded with where it hangs and what its programs said last."""

from firstlight.lab.backends.process import Process
from firstlight.lab.experiments import Case
from firstlight.lab.load import Outcome
from firstlight.lab.runner import sample
from firstlight.lab.schedule import Batch
from firstlight.model import Ending

WHERE = "hung in phase datastore: calico (pid 7) is in read socket:inet"


def hung(output: str, evidence: str | None) -> str | None:
    outcome = Outcome(1, 2, 0, 0, 0, 0, 7, None, True, output)
    made = sample(
        0,
        0,
        0,
        Batch(Case({"instances": 1}, Process()), 0, traced=False),
        outcome,
        outcome,
        evidence,
        0,
    )
    assert made.ending is Ending.HUNG
    return made.error


def test_the_last_line_is_brought_along() -> None:
    message = "one\nfirstlight step x 1 2\n[INFO] About to acquire host-wide IPAM lock.\n\n"
    assert hung(message, WHERE) == (
        f'{WHERE}; it last printed "[INFO] About to acquire host-wide IPAM lock."'
    )


def test_error_without_output_is_the_stuck_function() -> None:
    assert hung("firstlight step x 1 2\n", WHERE) == WHERE


def test_endless_words_are_cut() -> None:
    assert len(hung("x" * 5000 + "\n", WHERE) or "") < 500
