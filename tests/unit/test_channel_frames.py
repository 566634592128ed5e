"""The frame decoder and what a connection does with it, on bytes alone."""

from __future__ import annotations

import ast
import asyncio
import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import actors.channel
from actors.channel import Frame, FrameDecoder, FrameType, encode
from actors.channel.connection import Connection, error_of, problem_bytes
from cluster.errors import FieldError, InternalError, InvalidRequestError, OverloadedError
from cluster.settings import PROJECT_ROOT
from tests.sizes import soak

LIMIT = 5000
DATA = [FrameType.CALL, FrameType.CHUNK, FrameType.RESULT, FrameType.ERROR]
FRAMES = st.lists(
    st.builds(Frame, st.sampled_from(DATA), st.integers(0, 1), st.integers(0, 2**32 - 1), st.binary(max_size=200))
    | st.builds(Frame, st.sampled_from([FrameType.PING, FrameType.PONG]), st.just(0), st.just(0), st.binary(max_size=8)),
    max_size=30,
)


def in_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({c % (len(data) + 1) for c in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


@given(frames=FRAMES, cuts=st.lists(st.integers(0, 10_000), max_size=20))
@settings(max_examples=soak(300, 30_000), deadline=None)
def test_frames_come_out_as_they_went_in_however_they_are_cut(frames: list[Frame], cuts: list[int]) -> None:
    """Any frames, cut into any pieces on the way, are the same frames in the same order."""
    data = b"".join(encode(f.type, f.stream, f.body, f.flags) for f in frames)
    decoder = FrameDecoder(LIMIT)
    out = [f for piece in in_pieces(data, cuts) for f in decoder.feed(piece)]
    assert out == frames
    assert decoder.fault is None


@given(data=st.binary(max_size=3000), cuts=st.lists(st.integers(0, 10_000), max_size=20))
@settings(max_examples=soak(300, 30_000), deadline=None)
def test_random_bytes_never_break_the_decoder(data: bytes, cuts: list[int]) -> None:
    """Any bytes give frames within the bounds and perhaps a fault, the same for every way of cutting them."""
    whole, cut = FrameDecoder(LIMIT), FrameDecoder(LIMIT)
    frames = whole.feed(data)
    assert [f for piece in in_pieces(data, cuts) for f in cut.feed(piece)] == frames
    assert cut.fault == whole.fault
    for f in frames:
        assert FrameType(f.type)
        assert len(f.body) <= LIMIT
    if whole.fault is not None:
        assert whole.feed(encode(FrameType.PING, 0)) == [], "nothing after a fault is believed"


@pytest.mark.parametrize(
    "head",
    [
        b"\xff\xff\xff\xff\4\0\0\0\0\0\0\1",
        (LIMIT + 1).to_bytes(4, "big") + b"\4\0\0\0\0\0\0\1",
        b"\0\0\0\x09\x08\0\0\0\0\0\0\0",
        b"\0\0\0\1\6\0\0\0\0\0\0\1",
        b"\0\0\0\0\0\0\0\0\0\0\0\0",
        b"\0\0\0\0\x0a\0\0\0\0\0\0\0",
        b"\0\0\0\0\4\2\0\0\0\0\0\1",
        b"\0\0\0\0\4\0\0\1\0\0\0\1",
    ],
    ids=["4 GiB", "over the limit", "long PING", "CANCEL with a body", "type 0", "type 10", "unknown flag", "reserved bits"],
)
def test_a_bad_header_is_a_fault_before_its_body_is_kept(head: bytes) -> None:
    """What is announced too long, or is no frame, is refused by its twelve bytes alone; the frame before it counts."""
    decoder = FrameDecoder(LIMIT)
    good = encode(FrameType.RESULT, 1, b"good")
    assert [f.body for f in decoder.feed(good + head)] == [b"good"]
    assert decoder.fault is not None
    assert not decoder._rest


def test_a_large_frame_in_small_pieces_is_joined_once() -> None:
    """Feeding a large body bit by bit looks at no byte again until all of them are there."""
    decoder = FrameDecoder(1 << 22)
    body = bytes(range(256)) * (1 << 12)
    data = encode(FrameType.RESULT, 9, body)
    for at in range(0, len(data) - 1000, 1000):
        assert decoder.feed(data[at : at + 1000]) == []
        assert decoder._needed in (12, len(data))
    (frame,) = decoder.feed(data[len(data) - len(data) % 1000 if len(data) % 1000 else len(data) - 1000 :])
    assert frame == Frame(FrameType.RESULT, 0, 9, body)


def test_the_limit_may_rise_between_feeds() -> None:
    """Before HELLO only a HELLO fits; afterwards what was agreed."""
    decoder = FrameDecoder(14)
    decoder.feed(encode(FrameType.HELLO, 0, b"x" * 14))
    decoder.limit = 100
    assert len(decoder.feed(encode(FrameType.RESULT, 1, b"x" * 100))) == 1
    assert decoder.fault is None


class Wire(asyncio.Transport):
    """Keeps what is written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        pass


class Ends(Connection):
    def on_hello(self, max_frame: int, max_streams: int) -> None:
        pass

    def on_frame(self, frame: Frame) -> None:
        pass

    def on_lost(self, why: str) -> None:
        pass


async def test_what_one_tick_sends_leaves_in_one_write() -> None:
    """A hundred frames of one turn of the loop cost one system call. Control: Connection.send and _flush."""
    wire, connection = Wire(), Ends()
    connection.connection_made(wire)
    for i in range(100):
        connection.send(FrameType.CHUNK, i, b"token %d" % i)
    assert wire.writes == []
    await asyncio.sleep(0)
    assert len(wire.writes) == 1
    assert len(FrameDecoder(LIMIT).feed(wire.writes[0])) == 100
    connection.close("done")


def test_an_error_survives_its_frame_within_bounds() -> None:
    """Kind, words and fields come back; text without end is cut, so that an error is never larger than a frame."""
    e = OverloadedError("Full.", hint="Wait.", errors=[FieldError("a.b", "no")], retry_after_s=2.5)
    back = error_of(problem_bytes(e))
    assert type(back) is OverloadedError
    assert (back.detail, back.hint, back.errors, back.retry_after_s) == (e.detail, e.hint, e.errors, 2.5)
    endless = InvalidRequestError("x" * 10**6, hint="y" * 10**6, errors=[FieldError("f" * 10**6, "m" * 10**6)] * 1000)
    assert len(problem_bytes(endless)) < 1 << 16
    assert type(error_of(problem_bytes(InvalidRequestError("a lone surrogate \ud800")))) is InvalidRequestError


@given(body=st.binary(max_size=200))
@settings(max_examples=soak(200, 20_000), deadline=None)
def test_bytes_that_are_no_error_document_become_an_internal_error(body: bytes) -> None:
    """Whatever an ERROR frame carries, the caller gets one of the platform's errors."""
    assert error_of(body).status >= 400
    assert type(error_of(b"\x93" + body)) is InternalError


def test_threat_42_nothing_on_the_channel_can_unpickle() -> None:
    """No module of the channel or of its grants imports anything that unpickles, or Ray."""
    folder = Path(actors.channel.__file__).parent
    banned = {"pickle", "cloudpickle", "_pickle", "dill", "marshal", "shelve", "ray", "joblib", "multiprocessing"}
    files = [*folder.glob("*.py"), PROJECT_ROOT / "cluster/identity/grants.py", PROJECT_ROOT / "cluster/errors.py"]
    assert len(files) >= 7
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.partition(".")[0] for n in names} & banned, f"{path.name} imports {names}"
