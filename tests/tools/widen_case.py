"""widen_case.py CASE OUT N - a golden case with its sequences N times over: same loss, same gradients."""
import json
import pathlib
import shutil
import struct
import sys


def read(path):
    data = path.read_bytes()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__", None)
    body = data[8 + size :]
    return {
        name: (tensor["dtype"], tensor["shape"], body[slice(*tensor["data_offsets"])])
        for name, tensor in header.items()
    }


def write(path, tensors):
    header, body = {}, b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


def main(case, out, times):
    out.mkdir()
    for name in ("config.json", "model.safetensors", "losses.json"):
        shutil.copy(case / name, out / name)
    for name, wide in (("tokens.safetensors", "tokens"), ("expected.safetensors", "logits")):
        tensors = read(case / name)
        dtype, shape, data = tensors[wide]
        tensors[wide] = (dtype, [shape[0] * times] + shape[1:], data * times)
        write(out / name, tensors)


main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]))
