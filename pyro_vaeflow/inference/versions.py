"""The versions that a run's or a checkpoint's numbers depend on."""

import platform
from collections.abc import Sequence
from importlib.metadata import version

import pyro_vaeflow

PACKAGES = ("pyro-ppl", "torch", "numpy", "scikit-learn", "pandas")


def package_versions(more: Sequence[str] = ()) -> dict[str, str]:
    """Package -> version, of this one, Python, `PACKAGES` and `more`.

    Example:
        >>> package_versions()["pyro-vaeflow"] == pyro_vaeflow.__version__
        True
    """
    own = {"pyro-vaeflow": pyro_vaeflow.__version__, "python": platform.python_version()}
    return own | {name: version(name) for name in (*PACKAGES, *more)}
