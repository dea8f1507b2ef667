"""The few lines of protobuf that a model file needs, so that a device does not need the onnx package."""

from __future__ import annotations

from collections.abc import Iterator

from confit_runtime.errors import ModelError


def number_field(number: int, value: int) -> bytes:
    """A field with a number (not negative)."""
    return _varint(number << 3) + _varint(value)


def bytes_field(number: int, value: bytes) -> bytes:
    """A field with bytes, a text or another message."""
    return _varint(number << 3 | 2) + _varint(len(value)) + value


def text_field(number: int, text: str) -> bytes:
    return bytes_field(number, text.encode())


def fields(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """The fields of one message: (number, start, payload start, end). Raises ModelError if they are incomplete."""
    at = 0
    while at < len(data):
        start = at
        key, at = _read_varint(data, at)
        number, wire = key >> 3, key & 7
        payload = at
        if wire == 0:
            _, at = _read_varint(data, at)
        elif wire == 1:
            at += 8
        elif wire == 2:
            length, payload = _read_varint(data, at)
            at = payload + length
        elif wire == 5:
            at += 4
        else:
            raise ModelError("is not an ONNX model")
        if at > len(data) or number == 0:
            raise ModelError("is not a complete ONNX model: the file was cut short or damaged")
        yield number, start, payload, at


# where tensors are in an ONNX model: by the kind of a message, the kind of message in each field
_MESSAGES = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external"},
}


def has_external_data(model: bytes) -> bool:
    """Whether any tensor of an ONNX model is stored in another file. Raises ModelError if a message is incomplete."""
    if b"location" not in model:  # every external tensor has this key: most models need no further reading
        return False
    left = [("model", model)]
    while left:
        kind, message = left.pop()
        if kind == "external":
            return True
        for number, _, payload, end in fields(message):
            if (inner := _MESSAGES[kind].get(number)) is not None:
                left.append((inner, message[payload:end]))
    return False


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
    raise ModelError("is not a complete ONNX model: the file was cut short or damaged")
