"""The arms of SALMONN's trial by name, what each is, and those that begin without the warm start.

Knows: names. Does not know: models, how an arm is trained or asked.
"""

from __future__ import annotations

STACK, MAIN, ACTIVATED, REHEARSED = "stack and linear", "SALMONN", "SALMONN, activated", "activated with rehearsal"
SHUFFLED, ONE, SILENT, CASCADE = "shuffled audio", "one encoder", "text alone", "cascade"
COLD = " without warm start"  # after the name of an arm that is trained by the paper's stages alone, as published
SEEDED = (STACK, MAIN, ACTIVATED, ONE)  # arms on which a claim rests, or which a comparison with the baseline needs
# By their names on the command line, those that may be left out.
OPTIONAL = {
    "activated": (ACTIVATED,),
    "rehearsed": (REHEARSED,),
    "shuffled": (SHUFFLED,),
    "one": (ONE,),
    "text": (SILENT,),
    "cascade": (CASCADE,),
    "cold": (STACK + COLD, MAIN + COLD, SHUFFLED + COLD),
}
_ABOUT = {
    STACK: "the frames of a window through one linear layer; all else is SALMONN's",
    MAIN: "Q-Former, after stage 2, before activation",
    ACTIVATED: "after stage 3: stories that SALMONN wrote at a weaker adapter",
    REHEARSED: "the same stage 3 with rows of stage 2 beside each story, which is not the paper's",
    SHUFFLED: "SALMONN, hearing another clip of the same task",
    ONE: "SALMONN with the encoder for speech alone",
    SILENT: "SALMONN trained and asked with frames of zeros: what text and lengths give away",
    CASCADE: "Whisper's transcript, read by the language model without an adapter",
}


def plain(name: str) -> str:
    """An arm's name without the words that it begins without a warm start."""
    return name.removesuffix(COLD)


def cold(name: str) -> bool:
    """Whether an arm begins without the warm start where others have it."""
    return name.endswith(COLD)


def about(name: str) -> str:
    """An arm in one line; a name that is not known is a peer's."""
    told = _ABOUT.get(plain(name), "the peer's transcript, read by the language model without an adapter")
    return told + ", trained by the paper's stages alone, as published" * cold(name)
