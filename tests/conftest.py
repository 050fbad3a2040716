"""Fixtures that every test file may use."""

import signal
from importlib.util import find_spec

import pyro
import pytest
import torch

import tests.processes  # noqa: F401  (what is preloaded is said before any process starts)
from tests.programs import ZOO, Pair

# A shell starts what runs in its background deaf to Ctrl-C, and so all that it starts in turn.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Most laws hold for untrained pairs and few draws too, so the tests score many such."""
    quiet = ("ignore:no parameters are known", "ignore:[0-9]+ of [0-9]+ rows have k-hat above")
    for item in items:
        for filter_ in quiet:
            item.add_marker(pytest.mark.filterwarnings(filter_))
        if item.path.stem.endswith("data_tree") and not find_spec("arviz_base"):
            item.add_marker(pytest.mark.skip("arviz-base is not installed: pip install .[arviz]"))


@pytest.fixture(autouse=True)
def own_state():
    """Each test starts from one random state and an empty global store of parameters."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield
    pyro.clear_param_store()


@pytest.fixture
def float64():
    """Double precision, where it makes a law sharp."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(params=sorted(ZOO))
def pair(request: pytest.FixtureRequest) -> Pair:
    """Each pair of the zoo in turn, newly made in the default precision."""
    return ZOO[request.param]()


@pytest.fixture(params=sorted(name for name in ZOO if name != "shared_latent"))
def row_pair(request: pytest.FixtureRequest) -> Pair:
    """Each pair of the zoo whose latents are all rows' own."""
    return ZOO[request.param]()
