"""What label maps hold besides classes."""

IGNORE = 255
"""The train id of pixels that count nowhere: neither in a loss nor in a score."""
