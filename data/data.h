/* data.h - the door of data/: tokens from files, in an order that follows from a seed.
 *
 *     tokens    a token file, mapped: Megatron's .idx/.bin, llm.c's .bin, bytes
 *     corpus    a token file cut into sequences, in the order of an epoch
 *     sources   "FILE:WEIGHT,..": a list of files
 *     dataset   sequences by number, mixed from several corpora
 */
#ifndef DATA_DATA_H
#define DATA_DATA_H

#include "data/corpus.h"
#include "data/dataset.h"
#include "data/sources.h"
#include "data/tokens.h"

#endif
