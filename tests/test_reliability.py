"""Killed trainings and damaged files: a few cases of what results/reliability has many of."""

from pathlib import Path

from results.reliability.damage import failures, fuzz, readers
from results.reliability.kills import kill


def test_damaged_files_are_accepted_or_refused_by_name(tmp_path: Path) -> None:
    cases = fuzz(tmp_path, seed=2, num_cases=3 * len(readers()))
    assert failures(cases).empty, failures(cases).to_string()
    assert len(cases) == 3 * len(readers())
    assert (cases["outcome"] == "refused").sum() > len(readers())


def test_kills_at_random_moments_change_no_bit() -> None:
    counts = kill(kills=5, seed=0)
    assert counts["kills"] >= 5 and counts["ends compared"] > 1 and not counts["mismatches"]
    # Where a kill falls depends on what else the machine does: not each place is hit each time.
    assert sum(counts[place] for place in ("in a step", "writing", "renaming")) > 0
