"""Encodes records as JSON, with arguments and variables of any bytes.

Linux lets arguments and variables hold any bytes. Python holds bytes that are not UTF-8 as lone
surrogates. So does this JSON, by escapes that msgspec neither writes nor reads.
"""

import json
from typing import TypeVar

import msgspec

T = TypeVar("T")


def encode(value: object) -> bytes:
    """Encode a record as JSON."""
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError:
        return json.dumps(msgspec.to_builtins(value, str_keys=True)).encode()


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
            return msgspec.convert(json.loads(text), decoder.type, str_keys=True)
        except (ValueError, RecursionError) as error:
            raise msgspec.DecodeError(str(error)) from error
