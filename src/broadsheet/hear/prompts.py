"""The text around audio: the template, and instructions per task.

Knows: text. Does not know: tokenizers, audio.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from broadsheet.console import InputError

MARK = "<audio>"  # the place of a clip in an instruction; without marks, clips come first


@dataclass(frozen=True)
class AudioPrompt:
    """The text around the clips of a prompt: `USER: <Speech>`[clip]`</Speech> ` instruction `\\nASSISTANT:`.

    `<Speech>` and `</Speech>` are ordinary text. An answer follows the prompt directly; it begins with a space if the
    tokenizer distinguishes words with one.

    Args:
        user, assistant: beginning of the turn and of the answer.
        before, after: around each clip.

    Source: arXiv:2310.13289, Sec. 3.1; the authors' prompt for Vicuna 1.1.
    """

    user: str = "USER: "
    before: str = "<Speech>"
    after: str = "</Speech> "
    assistant: str = "\nASSISTANT:"

    def parts(self, instruction: str, clips: int) -> list[str]:
        """The text before, between and after the clips: one part more than clips.

        Raises:
            InputError: the numbers of marks and clips differ, or the instruction is empty.
        """
        marked = instruction.count(MARK)
        if marked and marked != clips:
            raise InputError(
                f"got {clips} clips for an instruction with {marked} {MARK}; expected as many, or no marks"
            )
        if not instruction.strip():
            raise InputError("got an empty instruction; say what is asked about the audio")
        text = instruction if marked else MARK * clips + instruction
        text = f"{self.user}{text.replace(MARK, f'{self.before}{MARK}{self.after}')}{self.assistant}"
        return text.split(MARK)


# Evaluation uses the first instruction of a task; training draws one for each example.
INSTRUCTIONS: dict[str, tuple[str, ...]] = {
    "asr": (
        "What is said?",
        "Write down the words.",
        "Transcribe the speech.",
        "What does the speaker say?",
        "Put the speech into text.",
    ),
    "sound": (
        "What sound is heard?",
        "Name the sound.",
        "Which sound is this?",
        "What makes the sound?",
    ),
    "caption": (
        "Describe the audio.",
        "What happens in the audio?",
        "Write a caption of the audio.",
    ),
    "count": (
        "How many times is the sound heard?",
        "Count the sounds.",
        "How often does the sound come?",
    ),
    "voice": (
        "Who speaks?",
        "Is the speaker a man or a woman?",
        "Whose voice is it?",
    ),
    "order": (
        "Which sounds are heard, in order?",
        "Name the two sounds in their order.",
        "What is heard first, and what then?",
    ),
    "speech_sound": ("What is heard besides the voice?",),
    "story": (
        "Write a story about the audio.",
        "Tell a story that begins with what is heard.",
        "Make up a long story about the sound.",
    ),
    "translation": ("Translate the speech.", "Say in the other language what is said."),
    "qa": ("Answer the question about the audio.",),
}


def instruction(task: str, draw: random.Random | None = None, pools: Mapping[str, Sequence[str]] | None = None) -> str:
    """The instruction of a task: the fixed one, or one drawn from its pool.

    Raises:
        InputError: the task has no pool, so its rows need an instruction of their own.
    """
    pool = (pools or {}).get(task) or INSTRUCTIONS.get(task)
    if not pool:
        raise InputError(
            f"task {task!r} has no instructions; give its rows an `instruction`; these have: {', '.join(INSTRUCTIONS)}"
        )
    return pool[0] if draw is None else draw.choice(list(pool))
