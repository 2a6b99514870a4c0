#!/usr/bin/env python3
"""An independent reader of checkpoints, written from docs/checkpoints.md and manifest.proto alone.

read_checkpoint.py CHECKPOINT MODEL.safetensors: every hash, every element once, and the weights are those of the
file, bit for bit. Prints what it found.
"""
import ctypes
import json
import pathlib
import struct
import sys

xxhash = ctypes.CDLL("libxxhash.so.0")
zstd = ctypes.CDLL("libzstd.so.1")


class Hash128(ctypes.Structure):
    _fields_ = [("low", ctypes.c_uint64), ("high", ctypes.c_uint64)]


xxhash.XXH3_128bits.restype = Hash128
xxhash.XXH3_128bits.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
zstd.ZSTD_decompress.restype = ctypes.c_size_t
zstd.ZSTD_decompress.argtypes = [ctypes.c_char_p, ctypes.c_size_t, ctypes.c_char_p, ctypes.c_size_t]


def hashed(data):
    found = xxhash.XXH3_128bits(data, len(data))
    return found.low, found.high


def unseal(data, kind):
    assert data[:8] == b"MUDDPIPE", data[:8]
    form, found, length, low, high = struct.unpack("<IIQQQ", data[8:40])
    assert form in (1, 2) and found == kind, (form, found)
    message = data[40:]
    assert len(message) == length and hashed(message) == (low, high)
    return message


def fields(message):
    """Protocol buffers: (number, value) in their order; bytes or a whole number."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while at < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        elif key & 7 == 1:
            yield key >> 3, struct.unpack("<Q", message[at:at + 8])[0]
            at += 8
        elif key & 7 == 2:
            length = varint()
            yield key >> 3, message[at:at + length]
            at += length
        else:
            raise AssertionError(f"wire type {key & 7}")


def table(message, names, lists=()):
    out = {name: [] for name in lists}
    for number, value in fields(message):
        name = names[number]
        if name in lists:
            out[name].append(value)
        else:
            out[name] = value
    return out


CHUNK = {1: "tensor", 2: "kind", 3: "begin", 4: "count", 5: "offset", 6: "bytes", 7: "low", 8: "high",
         9: "run", 10: "stride"}
SHARD = {1: "file", 2: "bytes", 3: "chunk"}
TENSOR = {1: "name", 2: "shape", 3: "trained"}
MANIFEST = {1: "format", 2: "program", 3: "step", 4: "sequences", 5: "train_data", 6: "config", 7: "model",
            8: "encoding", 9: "kind", 10: "tensor", 11: "shard"}


def values_of(data, count, encoding):
    if encoding == b"none":
        return data
    assert encoding == b"planes+zstd", encoding
    out = ctypes.create_string_buffer(4 * count)
    assert zstd.ZSTD_decompress(out, 4 * count, data, len(data)) == 4 * count
    planes = out.raw
    whole = bytearray(4 * count)
    for b in range(4):
        whole[b::4] = planes[b * count:(b + 1) * count]
    return bytes(whole)


def read(folder):
    folder = pathlib.Path(folder)
    manifest = table(unseal((folder / "manifest").read_bytes(), 1), MANIFEST, ("kind", "tensor", "shard"))
    assert (folder / "config.yaml").read_bytes() == manifest["config"]
    assert (folder / "config.json").read_bytes() == manifest["model"]
    tensors = [table(t, TENSOR, ("shape",)) for t in manifest["tensor"]]
    elements = []
    for tensor in tensors:
        count = 1
        for size in tensor["shape"]:
            count *= size
        elements.append(count)
    values = [[bytearray(4 * count) for _ in manifest["kind"]] for count in elements]
    seen = [[0] * len(manifest["kind"]) for _ in elements]
    for message in manifest["shard"]:
        shard = table(message, SHARD, ("chunk",))
        data = (folder / shard["file"].decode()).read_bytes()
        size = struct.unpack("<Q", data[-8:])[0]
        assert unseal(data[-8 - size:-8], 2) == message, "the shard's own table is another one"
        for part in shard["chunk"]:
            chunk = table(part, CHUNK)
            stored = data[chunk["offset"]:chunk["offset"] + chunk["bytes"]]
            assert hashed(stored) == (chunk["low"], chunk["high"])
            got = values_of(stored, chunk["count"], manifest["encoding"])
            run, stride = chunk.get("run", chunk["count"]), chunk.get("stride", 0)
            assert chunk["count"] % run == 0
            target = values[chunk["tensor"]][chunk["kind"]]
            for i in range(chunk["count"] // run):
                begin = 4 * (chunk["begin"] + i * stride)
                assert begin + 4 * run <= len(target)
                target[begin:begin + 4 * run] = got[4 * i * run:4 * (i + 1) * run]
            seen[chunk["tensor"]][chunk["kind"]] += chunk["count"]
    assert all(count == elements[t] for t, kinds in enumerate(seen) for count in kinds)
    return manifest, {tensor["name"].decode(): values[t] for t, tensor in enumerate(tensors)}


def safetensors(path):
    data = pathlib.Path(path).read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + length])
    header.pop("__metadata__", None)
    return {name: data[8 + length + entry["data_offsets"][0]:8 + length + entry["data_offsets"][1]]
            for name, entry in header.items()}


def main():
    manifest, values = read(sys.argv[1])
    weights = safetensors(sys.argv[2])
    assert set(weights) == set(values)
    for name, kinds in values.items():
        assert bytes(kinds[0]) == weights[name], name
    moved = sum(any(kinds[1]) and any(kinds[2]) for kinds in values.values())
    print(f"step {manifest['step']}, sequences {manifest['sequences']}, {len(values)} tensors, {moved} with moments")


main()
