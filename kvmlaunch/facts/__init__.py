"""Captured text to facts: pure parsers, one subject a file; only `sources` knows them all.

A subject names the files that it reads (`FILES`, patterns under the root) beside the parser of
their text.  Every parser is total: a value, or ValueError with a sentence.
"""
