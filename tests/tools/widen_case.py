"""widen_case.py CASE OUT N - a golden case with its sequences N times over: same loss, same gradients."""
import pathlib
import shutil
import sys

from safetensors_file import read, write


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
