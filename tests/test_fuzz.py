"""A few cases of the fuzz run, each reader some; `python -m tests.fuzz` runs for minutes."""

from pathlib import Path

from tests.fuzz import OUTCOMES, as_page, fuzz, readers, record


def test_damaged_files_are_accepted_or_refused_by_name(tmp_path: Path) -> None:
    counts, bad = fuzz(tmp_path, seed=2, num_cases=3 * len(readers()))
    assert bad == []
    assert sum(counts.values()) == 3 * len(readers())
    assert sum(n for (_, outcome), n in counts.items() if outcome == "refused") > len(readers())


def test_the_section_is_written_anew_and_others_are_kept(tmp_path: Path) -> None:
    page = tmp_path / "reliability.md"
    page.write_text("# Reliability\n\n## Fuzz\n\noutdated\n\n## Kill tests\n\nkept\n")
    section = as_page({("csv", "refused"): 3}, [], "the command")
    record(page, section)
    record(page, section)
    text = page.read_text()
    assert (
        text.count("## Fuzz") == 1 and "outdated" not in text and "\n## Kill tests\n\nkept" in text
    )
    assert "| csv | 3 | 0 | 3 " in text and all(outcome in text for outcome in OUTCOMES)
