"""A lab of the tests' own that starts machines as a run does, and looks for what is left."""

from dataclasses import dataclass, field
from pathlib import Path

from tests.support.laboratory import commands_of, marked

from firstlight.host.workspace import Workspace
from firstlight.lab import stuck
from firstlight.lab.backends import Backend
from firstlight.lab.experiments import Case
from firstlight.lab.load import Generator
from firstlight.lab.runner import sample
from firstlight.lab.schedule import Batch
from firstlight.model import Sample


@dataclass
class Room:
    """Where machines start."""

    workspace: Workspace
    generator: Generator
    batches: int = field(default=0)

    def start(self, machine: Backend, instances: int = 1, *, deadline: float = 20) -> list[Sample]:
        """One batch of a machine, as samples."""
        machine.probe()
        batch = Batch(Case({"instances": instances}, machine), 0, traced=False)
        self.batches += 1
        with commands_of(machine, instances, self.workspace) as commands:
            outcomes = self.generator.run(self.batches, commands, deadline=deadline)
            evidence = {each.pid: stuck.describe(each.pid) for each in outcomes if each.expired}
            ended = self.generator.stop(self.batches, deadline=20)
            guests = [command.guest() if command.guest else None for command in commands]
        return [
            sample(index, 0, index, batch, outcome, end, evidence.get(outcome.pid), 0, guest)
            for index, (outcome, end, guest) in enumerate(zip(outcomes, ended, guests, strict=True))
        ]

    def leftovers(self) -> list[str]:
        """Processes, links and files that a batch has left."""
        links = Path("/proc/self/net/dev").read_text().split("\n")[2:-1]
        names = [line.split(":")[0].strip() for line in links]
        files = [str(file) for file in self.workspace.directory.iterdir()]
        return [*marked(self.workspace.run), *(name for name in names if name != "lo"), *files]
