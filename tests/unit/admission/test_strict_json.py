"""JSON from outside has one meaning or none, and the process lives whatever the bytes are (threat 19)."""

from __future__ import annotations

import json
import random

import orjson
import pytest

from cluster.admission.strict_json import parse_strict_json
from cluster.errors import InvalidRequestError, PayloadTooLargeError
from tests.sizes import soak


def parse(data: bytes) -> object:
    return parse_strict_json(data, max_bytes=4 << 20)


def test_ordinary_json_is_what_it_says() -> None:
    """Objects, lists, numbers, escapes and surrogate pairs are taken."""
    text = '{"a":[1,-2,3.5,true,null,{"b":"\\ud83d\\ude00 \\u00e9 ü"}],"c":"{[\\"[[["}'
    assert parse(text.encode()) == json.loads(text)


def test_32_levels_are_taken_and_33_are_not() -> None:
    """The bound on nesting is exact, for lists, objects, and both in turn."""
    for opening, closing in (("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")):
        levels = 32 // (2 if opening.startswith("[{") else 1)
        inner = "1" if "a" in opening else ""
        parse((opening * levels + inner + closing * levels).encode())
        with pytest.raises(InvalidRequestError, match="deep"):
            parse((opening * (levels + 1) + inner + closing * (levels + 1)).encode())


def test_wide_is_not_deep() -> None:
    """Many brackets beside each other, or inside strings, are no nesting."""
    assert parse(b"[" + b",".join([b"[]"] * 1000) + b"]") == [[]] * 1000
    assert parse(json.dumps({"a": "[" * 500 + '\\"{'}).encode()) == {"a": "[" * 500 + '\\"{'}


HOSTILE = {
    "nested 200 deep": b"[" * 200 + b"]" * 200,
    "nested 100,000 deep": b"[" * 100_000 + b"]" * 100_000,
    "opened and never closed": b'{"a":' * 100_000,
    "objects 200 deep": b'{"a":' * 200 + b"1" + b"}" * 200,
    "same key twice": b'{"a":1,"a":2}',
    "same key twice, escaped": b'{"a":1,"\\u0061":2}',
    "same key twice inside": b'[{"x":{"a":1,"b":2,"a":1}}]',
    "lone high surrogate": b'{"a":"\\ud800"}',
    "lone low surrogate": b'["\\udfff x"]',
    "surrogates in wrong order": b'["\\ude00\\ud83d"]',
    "lone surrogate in a key": b'{"\\uD800":1}',
    "surrogate in bytes": b'"\xed\xa0\x80"',
    "NaN": b'{"a":NaN}',
    "Infinity": b"[Infinity]",
    "-Infinity": b"[-Infinity]",
    "400 digits": b'{"a":' + b"1" * 400 + b"}",
    "100,000 digits": b"1" * 100_000,
    "19 digits": b"1234567890123456789",
    "minus 19 digits": b"-1234567890123456789",
    "infinite float": b"1e999",
    "not UTF-8": b'{"a":"\xff"}',
    "overlong UTF-8": b'"\xc0\xaf"',
    "UTF-16": '{"a":1}'.encode("utf-16"),
    "byte order mark": b'\xef\xbb\xbf{"a":1}',
    "empty": b"",
    "blank": b" ",
    "two values": b"{} {}",
    "trailing comma": b"[1,]",
    "single quotes": b"{'a':1}",
    "comment": b"/**/1",
    "control character": b'"a\nb"',
    "NUL": b"\0",
    "half a string": b'"' + b"\\" * 99_999,
    "many quotes": b'"\\"' * 50_000,
    "unclosed": b'{"a":"b',
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_what_has_no_one_meaning_is_refused(data: bytes) -> None:
    """Each is an error of the body with a sentence, and nothing else."""
    with pytest.raises(InvalidRequestError) as refused:
        parse(data)
    assert [e.field for e in refused.value.errors] == ["body"]
    assert len(str(refused.value)) < 400


def test_more_bytes_than_the_bound_are_not_parsed() -> None:
    """One byte over the bound is refused as too large, whatever it holds."""
    assert parse_strict_json(b"[1]", max_bytes=3) == [1]
    with pytest.raises(PayloadTooLargeError):
        parse_strict_json(b"[11]", max_bytes=3)


def test_random_bytes_are_taken_as_another_parser_takes_them_or_refused() -> None:
    """For any bytes: the value that orjson reads, or an InvalidRequestError; never another failure."""
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    pieces = [
        b"{",
        b"}",
        b"[",
        b"]",
        b",",
        b":",
        b'"',
        b"\\",
        b'"a"',
        b'"b"',
        b"1",
        b"-",
        b".5",
        b"e9",
        b"null",
        b"true",
        b"\\u00e9",
    ]
    pieces += [b"\\ud83d", b"\\ude00", b"\xc3\xa9", b"\xff", b" ", b"\n", b"NaN", b"9" * 20, b'{"a":1}', b"[[]]"]
    for _ in range(soak(3_000, 200_000)):
        data = b"".join(rng.choices(pieces, k=rng.randrange(1, 14)))
        try:
            value = parse(data)
        except InvalidRequestError:
            continue
        assert orjson.loads(data) == value, f"seed {seed}: {data!r}"
