"""Start-up: what importing the package adds to importing Pyro, and how soon the command answers."""

import resource
import subprocess
import sys
from collections.abc import Iterator
from statistics import median

from benchmarks.record import Line

EVERYTHING = "import pyro_vaeflow as p; [getattr(p, name) for name in p.__all__]"


def measure(num_rounds: int) -> Iterator[Line]:
    """The processor's seconds of processes, in turn: a busy machine would double the wall's."""
    commands = {
        "pyro": ["-c", "import pyro"],
        "package": ["-c", "import pyro, pyro_vaeflow"],
        "names": ["-c", f"import pyro; {EVERYTHING}"],
        "bare": ["-c", "pass"],
        "help": ["-m", "pyro_vaeflow", "--help"],
    }
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(num_rounds):
        for name, command in commands.items():
            start = _of_children()
            subprocess.run([sys.executable, *command], check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(_of_children() - start)
    s = {name: median(values) for name, values in seconds.items()}
    yield Line("import", "import pyro_vaeflow after pyro", s["package"], s["pyro"], "s")
    yield Line("import", "every public name after pyro", s["names"], s["pyro"], "s")
    yield Line("import", "vaeflow --help", s["help"], s["bare"], "s")


def _of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime
