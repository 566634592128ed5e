"""The bytes of a journal, and that every change of them is found."""

from __future__ import annotations

import hashlib
import random
import shutil
from pathlib import Path

import pytest

from cluster.clock import FakeClock
from cluster.errors import IntegrityError
from cluster.journal.fact import Fact, Stream
from cluster.journal.journal_id import JournalId
from cluster.journal.reader import JournalReader
from cluster.journal.segment import RECORD, chain_after, decode_header, encode_record
from cluster.journal.verify import verify_journal
from cluster.journal.writer import JournalWriter
from tests.lake_samples import AGENT, all_facts
from tests.sizes import soak

JOURNAL = JournalId(AGENT, 3)
FIRST = "00000000000000000001.seg"
# Two facts, written by release 0.1.0. It is here so that a journal of today can be read for ever.
GOLDEN = (
    "534f564a524e4c0a"  # "SOVJRNL\n"
    "0001"  # format
    "00000003"  # epoch
    "0000000000000001"  # first seq
    "00065bfeda25e000"  # created_us
    "{genesis}"
    "0016"
    "6167656e742e61636d652e706c616e6e65722d303031"  # writer id
)


def write(directory: Path, count: int, **options: int) -> list[Fact]:
    facts = [Fact(Stream.AUDIT, {"n": i, "text": "x" * (i % 7 * 10)}) for i in range(count)]
    with JournalWriter(directory, AGENT, 3, clock=FakeClock(), **options) as writer:
        assert [writer.append(f) for f in facts] == list(range(1, count + 1))
    return facts


def test_the_format_is_what_it_was(tmp_path: Path) -> None:
    """Golden bytes: header and records as documented in segment.py, byte for byte."""
    with JournalWriter(tmp_path, AGENT, 3, clock=FakeClock(1_790_000_000_000_000)) as writer:
        writer.append(Fact(Stream.USAGE, {"a": 1}))
        writer.append(Fact(Stream.AUDIT, {"b": None}))
    data = (JOURNAL.folder(tmp_path) / FIRST).read_bytes()
    genesis = hashlib.sha256(b"sovereign-journal\nagent.acme.planner-001/e3\n").digest()
    head = bytes.fromhex(GOLDEN.format(genesis=genesis.hex()))
    assert data.startswith(head)
    header, length = decode_header(data) or pytest.fail("no header")
    assert (header.journal, header.first_seq, header.previous, length) == (JOURNAL, 1, genesis, len(head) + 4)
    one, two = bytes.fromhex("9301a5757361676581a16101"), bytes.fromhex("9301a5617564697481a162c0")
    first = hashlib.sha256(genesis + (1).to_bytes(8, "big") + one).digest()
    second = hashlib.sha256(first + (2).to_bytes(8, "big") + two).digest()
    assert data[length:] == encode_record(1, first, one) + encode_record(2, second, two)
    assert hashlib.sha256(data).hexdigest() == "f3883d3dc1743431819a81cfbb8e1ac328889218c30af212e69cd1d98c6abc53"


def test_facts_are_read_across_segments(tmp_path: Path) -> None:
    """A full segment is followed by the next, chained to it; reading in pieces gives the same as reading at once."""
    facts = write(tmp_path, 40, segment_bytes=700)
    assert len(list(JOURNAL.folder(tmp_path).glob("*.seg"))) > 4
    assert [f for _, f in all_facts(tmp_path, JOURNAL)] == facts
    reader, found = JournalReader(tmp_path, JOURNAL), []
    while piece := reader.read(3):
        found += piece
        reader = JournalReader(tmp_path, JOURNAL, type(reader.position).from_body(reader.position.to_body()))
    assert found == list(enumerate(facts, start=1))


def test_a_tail_torn_at_any_byte_keeps_every_whole_fact(tmp_path: Path) -> None:
    """Threat 61. Control: JournalReader stops at the first record that is not whole. Every cut leaves the facts before it."""
    facts = write(tmp_path / "whole", 6)
    whole = (JOURNAL.folder(tmp_path / "whole") / FIRST).read_bytes()
    _, at = decode_header(whole) or pytest.fail("no header")
    ends = [at]
    for fact in facts:
        ends.append(ends[-1] + RECORD.size + len(fact.encode()))
    assert ends[-1] == len(whole)
    torn = tmp_path / "torn"
    JOURNAL.folder(torn).mkdir(parents=True)
    for cut in range(len(whole) + 1):
        (JOURNAL.folder(torn) / FIRST).write_bytes(whole[:cut])
        check = verify_journal(torn, JOURNAL)
        kept = sum(end <= cut for end in ends[1:])
        assert (check.records, check.error) == (kept, "")
        assert check.torn_bytes == cut - (ends[kept] if cut >= at else 0)
        assert [f for _, f in all_facts(torn, JOURNAL)] == facts[:kept]


def test_a_torn_tail_of_zeros_keeps_every_whole_fact(tmp_path: Path) -> None:
    """Threat 61. After a power cut a file may end in zeros instead of the bytes that were written."""
    facts = write(tmp_path, 6)
    path = JOURNAL.folder(tmp_path) / FIRST
    whole = path.read_bytes()
    for zeros in range(1, RECORD.size + len(facts[-1].encode()) + 1):
        path.write_bytes(whole[:-zeros] + bytes(zeros))
        check = verify_journal(tmp_path, JOURNAL)
        assert (check.records, check.error) == (5, "")
        assert check.torn_bytes > 0


def test_every_changed_byte_is_found(tmp_path: Path) -> None:
    """Threat 51. Controls: CRC and chain. A flipped bit in any record but the last is named with file and record."""
    write(tmp_path, 5)
    path = JOURNAL.folder(tmp_path) / FIRST
    whole = path.read_bytes()
    last = whole.rindex(encode_last(tmp_path))
    for at in range(last):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        check = verify_journal(tmp_path, JOURNAL)
        assert check.error, f"byte {at}"
        assert str(path) in check.error
        assert check.records < 5


def encode_last(directory: Path) -> bytes:
    reader = JournalReader(directory, JOURNAL)
    reader.read(4)
    path = JOURNAL.folder(directory) / FIRST
    return path.read_bytes()[reader.position.offset :]


@pytest.mark.parametrize("how", ["deleted", "swapped", "inserted", "edited and its CRC made right"])
def test_an_edit_that_makes_its_crc_right_is_found_by_the_chain(tmp_path: Path, how: str) -> None:
    """Threat 51. Control: the hash chain in JournalReader._take. Deleting, reordering, inserting and editing all break it."""
    facts = write(tmp_path, 5)
    path = JOURNAL.folder(tmp_path) / FIRST
    data = path.read_bytes()
    header, at = decode_header(data) or pytest.fail("no header")
    records, chain = [], header.previous
    for seq, fact in enumerate(facts, start=1):
        chain = chain_after(chain, seq, fact.encode())
        records.append((seq, chain, fact.encode()))
    if how == "deleted":
        records = records[:1] + [(seq - 1, c, p) for seq, c, p in records[2:]]
    elif how == "swapped":
        (s1, c1, p1), (s2, c2, p2) = records[1:3]
        records[1:3] = [(s1, c2, p2), (s2, c1, p1)]
    elif how == "inserted":
        records = records[:1] + [(2, records[0][1], records[0][2])] + [(s + 1, c, p) for s, c, p in records[1:]]
    else:
        records[1] = (2, records[1][1], Fact(Stream.AUDIT, {"n": 99}).encode())
    path.write_bytes(data[:at] + b"".join(encode_record(*r) for r in records))
    check = verify_journal(tmp_path, JOURNAL)
    assert check.records == 1
    assert f"{path}, record 2: it does not follow" in check.error


def test_a_missing_segment_is_named(tmp_path: Path) -> None:
    """Threat 51: no file of a journal can be taken away but the last, and that only without a position behind it."""
    write(tmp_path, 40, segment_bytes=700)
    segments = sorted(JOURNAL.folder(tmp_path).glob("*.seg"))
    for gone in segments[:-1]:
        kept = gone.read_bytes()
        gone.unlink()
        assert "is missing before it" in verify_journal(tmp_path, JOURNAL).error
        gone.write_bytes(kept)
    assert verify_journal(tmp_path, JOURNAL).error == ""


def test_a_journal_cut_behind_a_position_is_found(tmp_path: Path) -> None:
    """Threat 52. Control: Position.chain and offset. Who remembers where it was sees that the tail is gone, or another one."""
    write(tmp_path, 5)
    reader = JournalReader(tmp_path, JOURNAL)
    reader.read(4)
    path = JOURNAL.folder(tmp_path) / FIRST
    whole = path.read_bytes()
    path.write_bytes(whole[: reader.position.offset - 1])
    with pytest.raises(IntegrityError, match="were read from it before"):
        JournalReader(tmp_path, JOURNAL, reader.position).read()
    shutil.rmtree(tmp_path / AGENT)
    with JournalWriter(tmp_path, AGENT, 3, clock=FakeClock()) as writer:
        writer.append_many([Fact(Stream.AUDIT, {"n": i, "text": "y" * (i % 7 * 10)}) for i in range(5)])
    with pytest.raises(IntegrityError, match="does not follow"):
        JournalReader(tmp_path, JOURNAL, reader.position).read()


def test_a_journal_under_another_name_is_found(tmp_path: Path) -> None:
    """The chain begins with the journal's own name, so that one agent's journal never passes for another's."""
    write(tmp_path, 3)
    (tmp_path / AGENT).rename(tmp_path / "agent.acme.other")
    assert "follows another record" in verify_journal(tmp_path, JournalId("agent.acme.other", 3)).error


def test_random_damage_never_reads_as_a_fact(tmp_path: Path) -> None:
    """Whatever bytes stand in a file, what is read is a first part of what was written, and nothing else is raised."""
    facts = write(tmp_path, 20, segment_bytes=900)
    segments = sorted(JOURNAL.folder(tmp_path).glob("*.seg"))
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    for _ in range(soak(200, 10_000)):
        path = rng.choice(segments)
        whole = path.read_bytes()
        begin = rng.randrange(len(whole))
        path.write_bytes(whole[:begin] + rng.randbytes(rng.randrange(60)) + whole[begin + rng.randrange(60) :])
        reader, found = JournalReader(tmp_path, JOURNAL), []
        try:
            while piece := reader.read():
                found += piece
        except IntegrityError:
            pass
        assert [f for _, f in found] == facts[: len(found)]
        path.write_bytes(whole)
