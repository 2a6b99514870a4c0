#!/usr/bin/env python3
"""Text to a token file, offline, with a Hugging Face tokenizer.json.

    tools/text_to_tokens.py tokenizer.json book.txt pile.jsonl train.idx --eod '<|endoftext|>'
    tools/text_to_tokens.py tokenizer.json --copy-to runs/NAME/model

A .jsonl file has a document in each line, any other file is one document; .gz is read as it is.
OUT.bin is written as llm.c's, OUT.idx as a Megatron pair (docs/data.md). Encoding needs the Python
package `tokenizers`; nothing is ever downloaded.
"""

import argparse
import array
import gzip
import json
import os
import shutil
import struct
import sys
import zlib

BATCH_CHARACTERS = 1 << 22
LLMC_MOST = 2**31 - 1
# Files that belong to a tokenizer, beside tokenizer.json.
COMPANIONS = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"]


class Refusal(Exception):
    """What the user should change."""


# ---- the tokenizer ----


def vocabulary_read(path):
    """(ids of the added tokens by their text, number of ids) without the package."""
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
        model = content["model"]["vocab"]
        ids = list(model.values()) if isinstance(model, dict) else list(range(len(model)))
        names = dict(model) if isinstance(model, dict) else {m[0]: i for i, m in enumerate(model)}
        for token in content.get("added_tokens", []):
            names[token["content"]] = token["id"]
            ids.append(token["id"])
        return names, max(ids) + 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refusal(f"{path}: not a readable tokenizer.json ({error})") from error


def encoder_load(path):
    try:
        import tokenizers
    except ImportError as error:
        raise Refusal(
            "encoding needs the Python package `tokenizers`, which is not installed: "
            "pip install tokenizers"
        ) from error
    try:
        return tokenizers.Tokenizer.from_file(path)
    except Exception as error:  # the package has no class of its own for this
        raise Refusal(f"{path}: {error}") from error


# ---- documents ----


def opened(path):  # utf-8-sig: without a byte order mark, if there is one
    if path.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8-sig")
    return open(path, encoding="utf-8-sig")


def checked(text, where):
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise Refusal(
            f"{where}: no text: {text[error.start]!r} at character {error.start} is half of a "
            "surrogate pair, which stands for nothing"
        ) from error
    return text


def documents_read(path, key):
    try:
        yield from documents(path, key)
    except (UnicodeDecodeError, EOFError, zlib.error) as error:
        raise Refusal(f"{path}: no whole UTF-8 text ({error})") from error


def documents(path, key):
    with opened(path) as file:
        name = path.removesuffix(".gz")
        if name.endswith(".json"):
            raise Refusal(
                f"{path}: JSON would be tokenized with its brackets: make it lines, an object with a "
                "text each, under a name that ends in .jsonl"
            )
        if not name.endswith(".jsonl"):
            yield file.read()
            return
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)[key]
            except (ValueError, KeyError, TypeError) as error:
                raise Refusal(
                    f"{path}:{number}: no object with a text under {key!r} (--key names another)"
                ) from error
            if not isinstance(text, str):
                raise Refusal(f"{path}:{number}: {key!r} is not a text")
            yield checked(text, f"{path}:{number}")


def batches(texts):
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


# ---- token files ----


class Output:
    """Both formats; files get their names when they are whole."""

    def __init__(self, path, wide, force):
        self.prefix, suffix = os.path.splitext(path)
        if suffix not in (".bin", ".idx"):
            raise Refusal(f"{path}: the name must end in .bin (llm.c) or .idx (Megatron)")
        self.megatron = suffix == ".idx"
        self.letter = ("i" if self.megatron else "I") if wide else "H"
        self.wide = wide
        if not self.megatron and os.path.exists(self.prefix + ".idx"):
            raise Refusal(
                f"{path} would be taken for the other half of {self.prefix}.idx, which exists; "
                "choose another name, or delete that pair first"
            )
        for name in (self.prefix + ".bin", self.prefix + ".idx"):
            if os.path.exists(name) and not force:
                raise Refusal(f"{name} exists already; --force replaces it")
        self.lengths = array.array("i")
        self.count = 0
        self.file = open(self.prefix + ".bin.part", "wb")
        self.header_write()

    def header_write(self):
        if not self.megatron:
            magic, version = (20240801, 7) if self.wide else (20240520, 1)
            self.file.write(struct.pack("<256i", magic, version, self.count, *[0] * 253))

    def put(self, ids):
        values = array.array(self.letter, ids)
        if sys.byteorder == "big":
            values.byteswap()
        self.file.write(values.tobytes())
        self.lengths.append(len(ids))
        self.count += len(ids)
        if not self.megatron and self.count > LLMC_MOST:
            raise Refusal(f"more than {LLMC_MOST} tokens do not fit an llm.c file; write OUT.idx")

    def finish(self):
        if not self.megatron:
            self.file.seek(0)
            self.header_write()
        self.file.close()
        if self.megatron:
            self.index_write()
        os.replace(self.prefix + ".bin.part", self.prefix + ".bin")
        if self.megatron:
            os.replace(self.prefix + ".idx.part", self.prefix + ".idx")

    def index_write(self):
        width, documents, at = 4 if self.wide else 2, len(self.lengths), 0
        pointers = array.array("q")
        for length in self.lengths:
            pointers.append(at)
            at += width * length
        with open(self.prefix + ".idx.part", "wb") as index:
            index.write(b"MMIDIDX\x00\x00")
            index.write(struct.pack("<QBQQ", 1, 4 if self.wide else 8, documents, documents + 1))
            for table in (self.lengths, pointers, array.array("q", range(documents + 1))):
                if sys.byteorder == "big":
                    table.byteswap()
                index.write(table.tobytes())

    def abandon(self):
        self.file.close()
        for name in (self.prefix + ".bin.part", self.prefix + ".idx.part"):
            if os.path.exists(name):
                os.remove(name)


def encode(arguments, texts, out):
    names, ids = vocabulary_read(arguments.tokenizer)
    if arguments.eod is not None and arguments.eod not in names:
        raise Refusal(f"{arguments.tokenizer} has no token {arguments.eod!r} to end documents with")
    eod = [names[arguments.eod]] if arguments.eod is not None else []
    encoder = encoder_load(arguments.tokenizer)
    encoder.no_truncation()
    encoder.no_padding()
    try:
        encoder.encode_special_tokens = True  # spelled out in a text they are text
    except AttributeError as error:
        raise Refusal(
            "the Python package `tokenizers` is too old: it would take special tokens that are spelled "
            "out in a text for such tokens (0.15 or newer)"
        ) from error
    output = Output(out, ids > 1 << 16, arguments.force)
    try:
        for path in texts:
            for batch in batches(documents_read(path, arguments.key)):
                for encoded in encoder.encode_batch(batch, add_special_tokens=False):
                    if encoded.ids or eod:
                        output.put(encoded.ids + eod)
        if output.count == 0:
            raise Refusal("the texts are empty")
        output.finish()
    except BaseException:
        output.abandon()
        raise
    print(f"{out}: {output.count} tokens in {len(output.lengths)} documents, ids below {ids}")
    if eod:
        print(f"each document ends with token {eod[0]}: data.eod={eod[0]}")
    elif not output.megatron:
        print("the file does not tell where documents end; --eod TOKEN would")


# ---- beside a model ----


def copy_beside(tokenizer, folder, force):
    inner = os.path.join(folder, "model")
    if not os.path.exists(os.path.join(folder, "config.json")) and os.path.exists(
        os.path.join(inner, "config.json")
    ):
        raise Refusal(f"{folder}: no config.json there, but {inner} has one: name that folder")
    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            vocab = json.load(file)["vocab_size"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Refusal(f"{folder}: no config.json with a vocab_size there ({error})") from error
    _, ids = vocabulary_read(tokenizer)
    if ids > vocab:
        raise Refusal(
            f"{tokenizer} has ids up to {ids - 1}, but the model in {folder} a vocabulary of "
            f"{vocab}: another tokenizer's model?"
        )
    for name in COMPANIONS:
        source = os.path.join(os.path.dirname(tokenizer), name)
        source = tokenizer if name == "tokenizer.json" else source
        target = os.path.join(folder, name)
        if not os.path.exists(source):
            continue
        if os.path.exists(target) and not force:
            raise Refusal(f"{target} exists already; --force replaces it")
        shutil.copyfile(source, target + ".part")
        os.replace(target + ".part", target)
        print(f"{target}: copied")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tokenizer", help="a tokenizer.json")
    parser.add_argument("files", nargs="*", metavar="TEXT... OUT", help="texts, then the output")
    parser.add_argument("--key", default="text", help="key of the text in JSON lines (%(default)s)")
    parser.add_argument("--eod", metavar="TOKEN", help="token put behind each document")
    parser.add_argument("--copy-to", metavar="FOLDER", help="put the tokenizer beside a model")
    parser.add_argument("--force", action="store_true", help="replace files that exist")
    arguments = parser.parse_intermixed_args()
    if len(arguments.files) == 1 or not (arguments.files or arguments.copy_to):
        parser.error("name texts and an output, or --copy-to")
    try:
        if arguments.files:
            encode(arguments, arguments.files[:-1], arguments.files[-1])
        if arguments.copy_to:
            copy_beside(arguments.tokenizer, arguments.copy_to, arguments.force)
    except (Refusal, OSError) as error:
        sys.exit(f"text_to_tokens.py: {error}")


if __name__ == "__main__":
    main()
