"""Commands that are shown: pasted into a shell, they mean the words that were meant."""

from __future__ import annotations

import shlex
import unicodedata
from collections.abc import Iterable

from mrm_jax.paths import letter_bytes


def pasteable(words: Iterable[str]) -> str:
    """The words as one line of shell text (bash, zsh)."""
    return " ".join(map(quoted, words))


def quoted(word: object) -> str:
    """One word of a command, quoted where a shell would read it as anything else.

    Control characters and bytes that are no text, which quotes would show as they are, become
    escapes in $'...'.
    """
    text = str(word)
    if not any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
        return shlex.quote(text)
    return f"$'{''.join(map(_escaped, text))}'"


def _escaped(letter: str) -> str:
    if letter in "\\'":
        return f"\\{letter}"
    if unicodedata.category(letter) not in ("Cc", "Cs"):
        return letter
    return "".join(f"\\{byte:03o}" for byte in letter_bytes(letter))
