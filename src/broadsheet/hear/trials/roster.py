"""The arms of SALMONN's trial by name, what each is, and those that begin with a warm start.

Knows: names. Does not know: models, how an arm is trained or asked.
"""

from __future__ import annotations

STACK, MAIN, ACTIVATED, REHEARSED = "stack and linear", "SALMONN", "SALMONN, activated", "activated with rehearsal"
SHUFFLED, ONE, SILENT, CASCADE = "shuffled audio", "one encoder", "text alone", "cascade"
WARM = "warm "  # before the name of an arm that begins with the warm start, which is ours and not the paper's
WARMED = (STACK, MAIN, ACTIVATED, REHEARSED, SHUFFLED, ONE)  # arms that there are with a warm start too
# By their names on the command line, those that may be left out.
OPTIONAL = {
    "activated": ACTIVATED,
    "rehearsed": REHEARSED,
    "shuffled": SHUFFLED,
    "one": ONE,
    "text": SILENT,
    "cascade": CASCADE,
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


def way(name: str) -> str:
    """How an arm begins: `WARM`, or the paper's way, which is empty; in front of a plain name it gives that arm's."""
    return WARM if name.startswith(WARM) else ""


def plain(name: str) -> str:
    """An arm's name without its way."""
    return name.removeprefix(WARM)


def about(name: str) -> str:
    """An arm in one line; a name that is not known is a peer's."""
    told = _ABOUT.get(plain(name), "the peer's transcript, read by the language model without an adapter")
    return told + ", after a warm start that is not the paper's" * bool(way(name))
