"""Procedural street scenes: pictures and exact labels from numbers alone."""
