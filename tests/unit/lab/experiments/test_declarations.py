"""What every experiment declares of itself is so."""

import pytest

from firstlight.lab.experiments import Experiment, Options, catalogue
from firstlight.report import views

EXPERIMENTS = pytest.mark.parametrize(
    "experiment", catalogue.ALL.values(), ids=lambda experiment: experiment.name
)
ALWAYS = {"instances", "end_point", "deadline"}


@EXPERIMENTS
def test_its_options_are_those_that_it_uses(experiment: Experiment) -> None:
    used: set[str] = set()

    class Watched(Options):
        def __getattribute__(self, name: str) -> object:
            used.add(name)
            return super().__getattribute__(name)

    for _ in experiment.cases(Watched((1,))):
        pass
    assert {name for name in used if not name.startswith("_")} - ALWAYS == set(experiment.options)


@EXPERIMENTS
def test_each_case_has_a_setting_for_each_axis(experiment: Experiment) -> None:
    for case in experiment.cases(Options((1, 2))):
        assert set(case.point) == set(experiment.axes)
        assert case.instances in (1, 2)


@EXPERIMENTS
def test_its_view_is_one_of_the_reports(experiment: Experiment) -> None:
    assert experiment.presentation.view in ("", *views.ALL)
    assert "{series}" in experiment.presentation.subject


def test_every_view_is_some_experiments() -> None:
    own = {each.presentation.view for each in catalogue.ALL.values()}
    assert own | {"nodes"} == {"", *views.ALL}  # that of any experiment on several nodes
