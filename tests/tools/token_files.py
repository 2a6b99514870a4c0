#!/usr/bin/env python3
"""Writes token files from the descriptions of their formats alone, for comparison with the program's.

    token_files.py FOLDER

leaves there, all of the same tokens (documents that end with token 0, of a vocabulary of 250):

    llmc.bin                    llm.c, u16
    wide.bin                    llm.c, u32
    {u8,u16,i32,i64}.{idx,bin}  Megatron, a sequence a document
    split.{idx,bin}             Megatron, several sequences a document and a few empty documents
    first.bin second.bin        llm.c, the same cut in two
    part1.{idx,bin} part2       Megatron, cut between two documents
    raw                         bytes
"""
import random
import struct
import sys

TYPES = {"u8": (1, "B"), "i32": (4, "i"), "i64": (5, "q"), "u16": (8, "H")}


def documents_make(count):
    draw = random.Random(7)
    for _ in range(count):
        length = draw.choice([1, 3, 17, 40, 64, 65, 200])
        word = draw.randrange(1, 230)
        yield [word + draw.randrange(20) for _ in range(length)] + [0]


def llmc_write(path, tokens, wide=False):
    magic, version, letter = (20240801, 7, "I") if wide else (20240520, 1, "H")
    with open(path, "wb") as out:
        out.write(struct.pack("<256i", magic, version, len(tokens), *[0] * 253))
        out.write(struct.pack(f"<{len(tokens)}{letter}", *tokens))


def megatron_write(prefix, documents, type_name):
    """documents: lists of sequences, each a list of tokens."""
    code, letter = TYPES[type_name]
    lengths, pointers, first, at = [], [], [0], 0
    with open(prefix + ".bin", "wb") as out:
        for document in documents:
            for sequence in document:
                data = struct.pack(f"<{len(sequence)}{letter}", *sequence)
                out.write(data)
                lengths.append(len(sequence))
                pointers.append(at)
                at += len(data)
            first.append(len(lengths))
    with open(prefix + ".idx", "wb") as out:
        out.write(b"MMIDIDX\x00\x00")
        out.write(struct.pack("<QBQQ", 1, code, len(lengths), len(first)))
        out.write(struct.pack(f"<{len(lengths)}i", *lengths))
        out.write(struct.pack(f"<{len(pointers)}q", *pointers))
        out.write(struct.pack(f"<{len(first)}q", *first))


def pieces(document):
    return [document[:5], document[5:]] if len(document) > 5 else [document]


def main(folder):
    documents = list(documents_make(120))
    tokens = [token for document in documents for token in document]
    llmc_write(f"{folder}/llmc.bin", tokens)
    llmc_write(f"{folder}/wide.bin", tokens, wide=True)
    llmc_write(f"{folder}/first.bin", tokens[:3001])
    llmc_write(f"{folder}/second.bin", tokens[3001:])
    for name in TYPES:
        megatron_write(f"{folder}/{name}", [[document] for document in documents], name)
    split = [pieces(document) for document in documents]
    split[40:40] = [[], []]
    split.append([])
    megatron_write(f"{folder}/split", split, "u16")
    megatron_write(f"{folder}/part1", [[document] for document in documents[:50]], "u16")
    megatron_write(f"{folder}/part2", [[document] for document in documents[50:]], "i32")
    with open(f"{folder}/raw", "wb") as out:
        out.write(bytes(tokens))


if __name__ == "__main__":
    main(sys.argv[1])
