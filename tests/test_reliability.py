"""Killed trainings, damaged files, fits and requests: a few of the cases of results/reliability."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pyro_vaeflow import VAEFlowDetector
from results.reliability.damage import failures, fuzz, readers
from results.reliability.kills import kill
from results.reliability.serving import FRAME, served
from results.reliability.soak import soak


def test_damaged_files_are_accepted_or_refused_by_name(tmp_path: Path) -> None:
    cases = fuzz(tmp_path, seed=2, num_cases=3 * len(readers()))
    assert failures(cases).empty, failures(cases).to_string()
    assert len(cases) == 3 * len(readers())
    assert (cases["outcome"] == "refused").sum() > len(readers())


def test_kills_at_random_moments_change_no_bit() -> None:
    counts: Counter[str] = Counter()
    for seed in range(4):  # where a kill falls depends on what else the machine does
        counts += kill(kills=4, seed=seed)
        if any(counts[place] for place in ("in a step", "writing", "renaming")):
            break
    else:
        pytest.fail(f"no kill fell into a step or a writing: {counts}")
    assert counts["kills"] >= 4 and counts["ends compared"] > 1
    assert not counts["mismatches"], counts


def test_fits_and_scores_leave_nothing_behind() -> None:
    held = soak(num_fits=2, every=1).iloc[1:]  # the first makes what stays
    levels = held.drop(columns=["fits", "scores", "MiB"])
    assert (levels.nunique() == 1).all(), levels.to_string()


def test_requests_in_threads_are_answered_as_in_one(tmp_path: Path) -> None:
    quick = {"num_steps": 2, "num_samples": 2, "hidden_dims": (4,), "random_state": 0}
    VAEFlowDetector(**quick).fit(FRAME.head(60)).save(tmp_path)
    with ThreadPoolExecutor(4) as threads:  # raises where an answer differs
        assert served(threads, 4, tmp_path, size=2, seconds=0.01) > 0
