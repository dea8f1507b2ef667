"""A stderr that cannot be written costs nothing but what was to be said."""

from __future__ import annotations

import io

from confit_edge.tolerant_stderr import TolerantStream


def test_whichever_way_it_is_written_a_full_disk_raises_nothing() -> None:
    with open("/dev/full", "wb", buffering=0) as disk:
        stream = TolerantStream(io.TextIOWrapper(disk, write_through=True))
        print("print", file=stream, flush=True)
        stream.writelines(["each\n", "line\n"])
        assert stream.write("write") == 5
