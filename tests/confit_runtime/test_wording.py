"""How numbers and names are put into words."""

from __future__ import annotations

from confit_runtime.names import known_names, nearest
from confit_runtime.wording import bounds, distinct, listed, percent, some


def test_of_many_names_the_first_are_told_and_how_many_more_there_are() -> None:
    names = [f"n{number}" for number in range(14)]
    assert listed(names[:12]) == ", ".join(names[:12])
    assert listed(names).endswith(", n11, and 2 more")
    assert listed(names, 2) == "n0, n1, and 12 more"
    assert some(names).endswith("'n10', 'n11', and 2 more")


def test_names_that_differ_by_case_alone_are_both_told_to_who_misspelt_one() -> None:
    known = [*(f"guest {number}" for number in range(30)), "Ada", "ADA"]
    assert known_names("adaa", known).startswith("Ada, ADA, guest 0, ")
    assert known_names("adaa", known).endswith(", and 20 more")
    assert nearest("adaa", known) == "Ada"


def test_a_share_is_told_in_per_cent_with_its_interval() -> None:
    assert percent(0.9591, 0.931, 0.9779) == "95.9 % [93.1, 97.8]"
    assert percent(0.9591, 0.931, 0.9779, unit="") == "95.9 [93.1, 97.8]"
    assert percent(0.9591, float("nan"), float("nan")) == "95.9 %"
    assert bounds(-0.5, 1.25, "+.2f") == "[-0.50, +1.25]"


def test_two_numbers_are_shown_with_as_many_decimals_as_tell_them_apart() -> None:
    assert distinct(0.41, 0.71) == ("0.41", "0.71")
    assert distinct(0.7134, 0.7142) == ("0.713", "0.714")
    assert distinct(0.7096, 0.71) == ("0.7096", "0.7100")
