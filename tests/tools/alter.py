"""Makes folders that differ from a golden case in one element of expected.safetensors each.

    alter.py CASE OUT    OUT/<tensor>/ for every tensor; the element moves by 0.1 % of the largest

Files that stay the same are links.
"""

import json
import os
import struct
import sys


def main(case, out):
    with open(os.path.join(case, "expected.safetensors"), "rb") as file:
        data = file.read()
    (size,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + size])
    for index, (name, tensor) in enumerate(header.items()):
        if name == "__metadata__":
            continue
        assert tensor["dtype"] == "F32"
        begin, end = (8 + size + offset for offset in tensor["data_offsets"])
        values = list(struct.unpack(f"<{(end - begin) // 4}f", data[begin:end]))
        at = index * 7919 % len(values)  # somewhere
        values[at] += 1e-3 * max(abs(value) for value in values)
        folder = os.path.join(out, name)
        os.makedirs(folder)
        for other in os.listdir(case):
            if other != "expected.safetensors":
                os.symlink(os.path.join(case, other), os.path.join(folder, other))
        with open(os.path.join(folder, "expected.safetensors"), "wb") as file:
            file.write(data[:begin] + struct.pack(f"<{len(values)}f", *values) + data[end:])


main(*sys.argv[1:])
