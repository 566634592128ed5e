"""What a killed process had acknowledged is in its journal, whenever it was killed."""

from __future__ import annotations

import random
import subprocess
import sys
import textwrap
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.journal.journal_id import JournalId
from cluster.journal.verify import verify_journal
from tests.lake_samples import all_facts
from tests.sizes import soak

# Appends without end and says each number after `append` returned, as an agent says its answer.
WRITER = textwrap.dedent("""
    import os, sys
    from pathlib import Path
    from cluster.journal.fact import Fact, Stream
    from cluster.journal.writer import JournalWriter
    directory, size, group, segment = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    writer = JournalWriter(directory, "agent.acme.victim", 1, sync_ms=5, segment_bytes=segment)
    n = 0
    while True:
        facts = [Fact(Stream.AUDIT, {"n": n + i, "text": "x" * size}) for i in range(1, group + 1)]
        n = writer.append_many(facts) if group > 1 else writer.append(facts[0])
        os.write(1, b"%d\\n" % n)
""")
VICTIM = JournalId("agent.acme.victim", 1)


@settings(max_examples=soak(8, 100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.sampled_from([0, 100, 5_000, 200_000]),
    group=st.sampled_from([1, 1, 7]),
    segment=st.sampled_from([1_000, 100_000, 64 << 20]),
    seed=st.integers(0, 1 << 32),
)
def test_what_was_acknowledged_survives_sigkill(tmp_path_factory: object, size: int, group: int, segment: int, seed: int) -> None:
    """Threats 59, 61. Control: JournalWriter.append writes before it returns. What was acknowledged is there, in order."""
    directory = Path(tmp_path_factory.mktemp("kill"))  # type: ignore[attr-defined]  # pytest's factory
    arguments = [str(directory), str(size), str(group), str(segment)]
    process = subprocess.Popen([sys.executable, "-c", WRITER, *arguments], stdout=subprocess.PIPE, bufsize=0)
    assert process.stdout is not None
    # Killed while it writes: after so many bytes of acknowledgements, which falls anywhere in its loop.
    wanted, said = random.Random(seed).randrange(1, soak(400, 4_000)), b""
    while len(said) < wanted:
        said += process.stdout.read(64)
    process.kill()
    said += process.stdout.read()
    process.stdout.close()
    process.wait()
    acknowledged = int(said[: said.rindex(b"\n")].split(b"\n")[-1])
    check = verify_journal(directory, VICTIM)
    assert (check.error, check.alive) == ("", False)
    found = all_facts(directory, VICTIM)
    assert len(found) >= acknowledged
    assert [(seq, f.body["n"], len(f.body["text"])) for seq, f in found] == [(n, n, size) for n in range(1, len(found) + 1)]
