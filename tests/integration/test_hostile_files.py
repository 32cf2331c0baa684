"""Quick fuzzing of the readers of files; ``python -m fuzzing.run`` does the same guided by coverage."""

import os
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# The fuzzers are not part of the package.
sys.path.append(str(Path(__file__).parents[2]))

from fuzzing.readers import READERS, BrokenPromise, Reader

N_EXAMPLES = 300


@st.composite
def damaged(draw, reader):
    """A whole file with up to four edits."""
    data = bytearray(draw(st.sampled_from(reader.seeds)))
    for _ in range(draw(st.integers(1, 4))):
        # Half of them near the beginning or the end, where headers and directories are.
        at = draw(st.one_of(st.integers(0, len(data)), st.integers(0, 200), st.integers(-200, -1)))
        at = max(0, min(len(data), at if at >= 0 else len(data) + at))
        edit = draw(st.sampled_from(["overwrite", "insert", "flip", "delete", "repeat", "cut"]))
        new = draw(st.one_of(st.sampled_from(reader.tokens), st.binary(min_size=1, max_size=9)))
        length = draw(st.integers(1, 64))
        if edit == "overwrite":
            data[at : at + len(new)] = new
        elif edit == "insert":
            data[at:at] = new * draw(st.sampled_from([1, 1, 1, 200]))
        elif edit == "flip" and at < len(data):
            data[at] ^= 1 << draw(st.integers(0, 7))
        elif edit == "delete":
            del data[at : at + length]
        elif edit == "repeat":
            data[at:at] = data[at : at + length]
        elif edit == "cut":
            del data[at:]
    return bytes(data)


@pytest.mark.parametrize("name", READERS)
def test_the_seeds_are_read(tmp_path, name):
    assert all(READERS[name].check(data, tmp_path) for data in READERS[name].seeds)


@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_is_at_worst_a_value_error_that_took_no_time_memory_or_liberties(tmp_path, name):
    reader = READERS[name]
    # The same draws in each run of CI, others on a developer's machine.
    settled = settings(
        max_examples=N_EXAMPLES,
        deadline=None,
        derandomize="CI" in os.environ,
        database=None,
        suppress_health_check=[HealthCheck.large_base_example, HealthCheck.too_slow],
    )

    @settled
    @given(damaged(reader))
    def read(data):
        reader.check(data, tmp_path)

    read()


def takes_memory(path):
    bytearray(1 << 26)


def calls(path):
    os.system("true")


def writes(path):
    path.with_name("other").write_bytes(b"")


def fails(path):
    raise KeyError("x_test")


def names_no_file(path):
    raise ValueError("damaged")


@pytest.mark.parametrize(
    "read, message",
    [
        (takes_memory, "bytes were taken for 3$"),
        (calls, "os.system"),
        (writes, "open"),
        (fails, "KeyError came"),
        (names_no_file, "the message is 'damaged'"),
    ],
)
def test_what_a_reader_must_not_do_is_noticed(tmp_path, read, message):
    def write(data, folder):
        (folder / "file").write_bytes(data)
        return folder / "file"

    with pytest.raises(BrokenPromise, match=message):
        Reader([], [], write, read).check(b"abc", tmp_path)
