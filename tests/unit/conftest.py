from collections.abc import Iterator

import pytest
from tests.support import synthetic

from firstlight.analysis import Analysis


@pytest.fixture(scope="session")
def known_phases() -> Iterator[None]:
    """Breakdowns whose every figure a test knows, instead of classified spans."""
    with synthetic.known_phases():
        yield


@pytest.fixture(scope="session")
def container(known_phases: None, tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return Analysis(synthetic.container_creation(tmp_path_factory.mktemp("container")))


@pytest.fixture(scope="session")
def network(known_phases: None, tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    return Analysis(synthetic.network_setup(tmp_path_factory.mktemp("network")))
