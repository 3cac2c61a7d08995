"""Prepared sets: record files that any picture is read from alone, and what proves them whole."""
