"""Start-up: what importing the package adds to importing Pyro, and how soon the command answers."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from statistics import median

from benchmarks.record import Line

COMMANDS = {
    "pyro": ["-c", "import pyro"],
    "package": ["-c", "import pyro, pyro_vaeflow"],
    "names": ["-c", "import pyro, pyro_vaeflow as p; [getattr(p, name) for name in p.__all__]"],
    "bare": ["-c", "pass"],
    "help": ["-m", "pyro_vaeflow", "--help"],
}


def measure(num_rounds: int) -> Iterator[Line]:
    """The processor's seconds of processes, in turn: a busy machine would double the wall's."""
    rounds = [
        {name: _seconds(command) for name, command in COMMANDS.items()} for _ in range(num_rounds)
    ]
    s = {name: median(seconds[name] for seconds in rounds) for name in COMMANDS}
    yield Line("import", "import pyro_vaeflow after pyro", s["package"], s["pyro"], "s")
    yield Line("import", "every public name after pyro", s["names"], s["pyro"], "s")
    yield Line("import", "vaeflow --help", s["help"], s["bare"], "s")


def _seconds(command: list[str]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
