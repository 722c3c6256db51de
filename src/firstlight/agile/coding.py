"""Encodes records as JSON, with arguments and variables of any bytes.

Linux lets arguments and variables hold any bytes. Python holds bytes that are not UTF-8 as lone
surrogates. So does this JSON, by escapes that msgspec neither writes nor reads.
"""

import json
from typing import TypeVar

import msgspec

T = TypeVar("T")


def encode(value: object) -> bytes:
    """Encode a record as JSON. Raises ValueError for an infinite number beside a lone surrogate."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(value, str_keys=True), allow_nan=False).encode()


def decode(text: bytes, decoder: msgspec.json.Decoder[T]) -> T:
    """Decode a record from JSON. Raises msgspec.MsgspecError, UnicodeDecodeError."""
    try:
        return decoder.decode(text)
    except msgspec.ValidationError:
        raise
    except RecursionError as error:
        raise msgspec.DecodeError(str(error)) from error
    except msgspec.DecodeError:
        if rb"\ud" not in text.lower():
            raise
        try:
            plain = json.loads(text, parse_constant=_refuse)
            return msgspec.convert(plain, decoder.type, str_keys=True)
        except (ValueError, RecursionError) as error:
            raise msgspec.DecodeError(str(error)) from error


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")
