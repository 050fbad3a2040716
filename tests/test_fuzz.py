"""A few cases of the fuzz run for each reader; `python -m tests.fuzz` runs for minutes."""

from pathlib import Path

from tests.fuzz import failures, fuzz, readers


def test_damaged_files_are_accepted_or_refused_by_name(tmp_path: Path) -> None:
    cases = fuzz(tmp_path, seed=2, num_cases=3 * len(readers()))
    assert failures(cases).empty, failures(cases).to_string()
    assert len(cases) == 3 * len(readers())
    assert (cases["outcome"] == "refused").sum() > len(readers())
