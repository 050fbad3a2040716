"""Methods compared over many data sets by their ranks, from a table of numbers alone.

References:
    J. Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, 2006, JMLR 7.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from scipy.stats import friedmanchisquare, rankdata, studentized_range


def ranks(values: pd.DataFrame) -> pd.DataFrame:
    """The rank of each method on each data set, 1 for the highest value, ties their mean rank.

    Args:
        values: high = good, one row a data set and one column a method, none missing.

    Raises:
        ValueError: a value is missing.

    Example:
        >>> ranks(pd.DataFrame({"a": [0.9, 0.8], "b": [0.7, 0.8]})).mean().to_dict()
        {'a': 1.25, 'b': 1.75}
    """
    if values.isna().any(axis=None):
        missing = values.index[values.isna().any(axis=1)].tolist()
        raise ValueError(f"values must not be missing; leave out the data sets {missing}")
    placed = rankdata(-values.to_numpy(float), axis=1)
    return pd.DataFrame(placed, index=values.index, columns=values.columns)


def friedman_p(values: pd.DataFrame) -> float:
    """Probability of average ranks at least so far apart if all methods were alike (Friedman).

    Raises:
        ValueError: fewer than 3 methods.

    Example:
        >>> alike = pd.DataFrame({"a": [1.0, 2.0], "b": [2.0, 1.0], "c": [1.5, 1.5]})
        >>> friedman_p(alike)
        1.0
    """
    return float(friedmanchisquare(*values.to_numpy(float).T).pvalue)


def critical_difference(num_methods: int, num_sets: int, alpha: float = 0.05) -> float:
    r"""How far two average ranks must lie apart to differ (Nemenyi), level `alpha` over all pairs.

    .. math:: CD = q_\alpha \sqrt{k (k + 1) / (6 N)}, with k methods and N data sets, where q is the
        studentized range's quantile over the square root of 2.

    Raises:
        ValueError: fewer than 2 methods, or no data set.

    Example:
        >>> round(critical_difference(4, 14), 2)  # Demsar's section 3.2.4 has 1.25
        1.25
    """
    if num_methods < 2 or num_sets < 1:
        raise ValueError(
            f"needs 2 methods and 1 data set at least, got {num_methods} and {num_sets}"
        )
    quantile = studentized_range.ppf(1 - alpha, num_methods, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(num_methods * (num_methods + 1) / (6 * num_sets)))


def indistinct(average: Mapping[str, float], difference: float) -> list[tuple[float, float]]:
    """The longest runs of ranks, lowest and highest, that lie within one critical difference.

    Example:
        >>> indistinct({"a": 1.0, "b": 1.5, "c": 2.2, "d": 4.0}, 1.0)
        [(1.0, 1.5), (1.5, 2.2)]
    """
    places = np.sort(list(average.values()))
    runs: list[tuple[float, float]] = []
    for low in places:
        high = places[places <= low + difference].max()
        if high > low and (not runs or high > runs[-1][1]):
            runs.append((float(low), float(high)))
    return runs
