"""safetensors_file.py - tensors of a safetensors file as {name: (dtype, shape, bytes)}, and back."""
import json
import struct


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
