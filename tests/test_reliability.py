"""Killed trainings and damaged files: a few cases of what results/reliability has many of."""

from collections import Counter
from pathlib import Path

import pytest

from results.reliability.damage import failures, fuzz, readers
from results.reliability.kills import kill


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
