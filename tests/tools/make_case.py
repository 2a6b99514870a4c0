"""make_case.py MODEL OUT BATCH T - a case for `muddpipe check` of a model's folder: tokens, and expected values of 0, until
what one rank makes of them takes their place."""
import json
import pathlib
import random
import shutil
import struct
import sys

from safetensors_file import read, write


def main(model, out, batch, length):
    out.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(model / name, out / name)
    words = json.loads((model / "config.json").read_text())["vocab_size"]
    draw = random.Random(1)
    tokens = [draw.randrange(words) for _ in range(batch * (length + 1))]
    tokens[:2] = [0, words - 1]
    write(
        out / "tokens.safetensors",
        {"tokens": ("I32", [batch, length + 1], struct.pack(f"<{len(tokens)}i", *tokens))},
    )
    expected = {
        "logits": ("F32", [batch, length, words], bytes(4 * batch * length * words)),
        "loss": ("F32", [1], bytes(4)),
    }
    for name, (_, shape, data) in read(model / "model.safetensors").items():
        expected[f"grad.{name}"] = ("F32", shape, bytes(len(data)))
    write(out / "expected.safetensors", expected)


main(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
