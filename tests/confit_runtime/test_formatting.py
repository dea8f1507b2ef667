"""How numbers and names are put into words."""

from __future__ import annotations

from confit_runtime.formatting import (
    format_distinct,
    format_interval,
    format_list,
    format_percent,
    format_quoted_list,
    format_table,
)
from confit_runtime.names import closest_name, format_known_names


def test_long_lists_show_the_first_names_and_a_count() -> None:
    names = [f"n{number}" for number in range(14)]
    assert format_list(names[:12]) == ", ".join(names[:12])
    assert format_list(names).endswith(", n11, and 2 more")
    assert format_list(names, 2) == "n0, n1, and 12 more"
    assert format_quoted_list(names).endswith("'n10', 'n11', and 2 more")


def test_names_that_differ_only_in_case_are_both_suggested() -> None:
    known = [*(f"guest {number}" for number in range(30)), "Ada", "ADA"]
    assert format_known_names("adaa", known).startswith("Ada, ADA, guest 0, ")
    assert format_known_names("adaa", known).endswith(", and 20 more")
    assert closest_name("adaa", known) == "Ada"


def test_shares_are_formatted_in_per_cent_with_their_interval() -> None:
    assert format_percent(0.9591, 0.931, 0.9779) == "95.9 % [93.1, 97.8]"
    assert format_percent(0.9591, 0.931, 0.9779, unit="") == "95.9 [93.1, 97.8]"
    assert format_percent(0.9591, float("nan"), float("nan")) == "95.9 %"
    assert format_interval(-0.5, 1.25, "+.2f") == "[-0.50, +1.25]"


def test_the_columns_of_a_table_are_as_wide_as_their_cells() -> None:
    rows = [("of", "kind", "n"), ("bench", "x", "100")]
    assert format_table(rows) == ["of     kind    n", "bench     x  100"]
    assert format_table(rows, left=2) == ["of     kind    n", "bench  x     100"]


def test_two_numbers_are_shown_with_as_many_decimals_as_tell_them_apart() -> None:
    assert format_distinct(0.41, 0.71) == ("0.41", "0.71")
    assert format_distinct(0.7134, 0.7142) == ("0.713", "0.714")
    assert format_distinct(0.7096, 0.71) == ("0.7096", "0.7100")
