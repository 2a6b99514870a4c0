"""Makes broken copies of a golden case: broken.py CASE OUT, one folder of OUT each."""

import json
import os
import shutil
import struct
import sys

VICTIM = "layers.1.attention.wo.weight"


def load(path):
    with open(path, "rb") as file:
        data = file.read()
    (size,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def pack(header, data):
    """Bytes of a file; `data` of each tensor is taken from where the header has it."""
    entries, payload = {}, b""
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        entries[name] = dict(entry, data_offsets=[len(payload), len(payload) + end - begin])
        payload += data[begin:end]
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + payload


def weights(case):
    """Name of the folder -> bytes of model.safetensors."""
    header, data = load(os.path.join(case, "model.safetensors"))
    entry = header[VICTIM]
    whole = pack(header, data)
    missing = {name: header[name] for name in header if name != VICTIM}
    turned = dict(header, **{VICTIM: dict(entry, shape=[16, 64])})
    odd = dict(header, **{VICTIM: dict(entry, shape=[32, 33])})
    alien = dict(header, **{VICTIM: dict(entry, dtype="Q7")})
    extra = dict(header, **{"layers.9.attention.wo.weight": entry})
    return {
        "missing": pack(missing, data),
        "shape": pack(turned, data),
        "size": pack(odd, data),
        "dtype": pack(alien, data),
        "extra": pack(extra, data),
        "cut": whole[:-100],
        "cut_header": whole[:100],
        "four_bytes": whole[:4],
        "endless": struct.pack("<Q", 1 << 62) + whole[8:],
        "no_json": whole[:8] + b"x" + whole[9:],
        "empty": b"",
    }


def configs(case):
    """Name of the folder -> text of config.json."""
    with open(os.path.join(case, "config.json"), encoding="utf-8") as file:
        text = file.read()
    return {
        "json_cut": text[:40],
        "json_type": text.replace('"n_head": 2', '"n_head": "two"'),
        "json_range": text.replace('"n_head": 2', '"n_head": -2'),
        "json_twice": text.replace('"n_head": 2', '"n_head": 2, "n_head": 2'),
        "json_typo": text.replace('"n_head": 2', '"n_haed": 2'),
        "json_heads": text.replace('"n_head": 2', '"n_head": 3'),
        "json_list": "[1]",
        "json_empty": "",
    }


def tokens(case):
    """Name of the folder -> bytes of tokens.safetensors."""
    header, data = load(os.path.join(case, "tokens.safetensors"))
    return {
        "token_big": pack(header, struct.pack("<i", 64) + data[4:]),
        "token_negative": pack(header, struct.pack("<i", -1) + data[4:]),
        "tokens_cut": pack(header, data)[:-10],
    }


def infinite(case):
    """A weight that makes the loss infinite or no number."""
    header, data = load(os.path.join(case, "model.safetensors"))
    begin = header["output.weight"]["data_offsets"][0]
    return pack(header, data[:begin] + struct.pack("<f", float("inf")) + data[begin + 4 :])


def main(case, out):
    files = {
        "model.safetensors": dict(weights(case), infinite=infinite(case)),
        "config.json": {name: text.encode() for name, text in configs(case).items()},
        "tokens.safetensors": tokens(case),
    }
    for name, versions in files.items():
        for folder, content in versions.items():
            shutil.copytree(case, os.path.join(out, folder))
            with open(os.path.join(out, folder, name), "wb") as file:
                file.write(content)


main(*sys.argv[1:])
