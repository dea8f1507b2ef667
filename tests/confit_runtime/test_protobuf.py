"""Reading and writing protobuf: what is written is read back, and what is not whole is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confit_runtime.errors import ModelError
from confit_runtime.protobuf import bytes_field, fields, number_field

NUMBERS = st.integers(1, 2**20)
FIELDS = st.lists(st.tuples(NUMBERS, st.one_of(st.binary(max_size=300), st.integers(0, 2**63 - 1))), max_size=8)


def written(parts: list[tuple[int, bytes | int]]) -> bytes:
    return b"".join(
        bytes_field(number, value) if isinstance(value, bytes) else number_field(number, value)
        for number, value in parts
    )


@given(FIELDS)
def test_fields_are_read_back_in_order(parts: list[tuple[int, bytes | int]]) -> None:
    data = written(parts)
    found = list(fields(data))
    assert [number for number, *_ in found] == [number for number, _ in parts]
    assert b"".join(data[start:end] for _, start, _, end in found) == data
    for (_, value), (_, _, begin, end) in zip(parts, found, strict=True):
        if isinstance(value, bytes):
            assert data[begin:end] == value


@given(FIELDS.filter(bool), st.data())
def test_truncated_messages_are_rejected_or_end_between_fields(
    parts: list[tuple[int, bytes | int]], data: st.DataObject
) -> None:
    whole = written(parts)
    ends = {end for *_, end in fields(whole)}
    cut = data.draw(st.integers(1, len(whole)))
    if cut in ends:
        assert len(list(fields(whole[:cut]))) <= len(parts)
    else:
        with pytest.raises(ModelError):
            list(fields(whole[:cut]))
