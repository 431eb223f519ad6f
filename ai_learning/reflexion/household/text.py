"""What the model reads and writes: the prompts, which are the graph's own, and their words as ids.

Actor and reflector are one model, prompted differently: the reflector's prompt ends in ``reflect:``.
"""

from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path

from ...files import write_text
from ..actors import ReAct, Situation
from ..memory import Memory
from ..prompt_files import Prompts
from ..reflector import reflection_messages
from ..tasks.base import Attempt, Step, Strategy
from .world import ANSWERS, FAMILIES, LAMP, MAX_ACTIONS, PLACES, TARGETS, THINGS, VERBS, HouseholdTask

PROMPTS = Path(__file__).parent / "prompts"
END, UNKNOWN = "<end>", "<unknown>"
_HEADINGS = ("memory:", "last:", "now:", "reflect:", "Observation:", "Result:", "task:", "-", ".")
_SENTENCES = f"You used up all {MAX_ACTIONS} actions. no in next " + " ".join(
    words for words, _ in FAMILIES.values()
)
WORDS = tuple(
    dict.fromkeys(  # in order, each once
        word
        for word in (
            *(END, UNKNOWN), *_HEADINGS, *VERBS, *PLACES, *TARGETS, LAMP, *ANSWERS, *THINGS,
            *_SENTENCES.split(),
        )
        if not word.startswith("{")
    )
)  # fmt: skip
_IDS = {word: number for number, word in enumerate(WORDS)}


class WordTokenizer:
    """One id a word; white space only separates. A ``Tokenizer``."""

    vocab_size = len(WORDS)
    eos_id = _IDS[END]
    fingerprint = sha256(" ".join(WORDS).encode()).hexdigest()[:16]

    def encode(self, text: str) -> list[int]:
        """Ids of the words; one that is not known becomes ``<unknown>``."""
        return [_IDS.get(word, _IDS[UNKNOWN]) for word in text.split()]

    def decode(self, ids: Iterable[int]) -> str:
        """The words, separated by spaces."""
        return " ".join(WORDS[i] for i in ids)

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Each word with a space after it, so that parts can be put together."""
        return "".join(f"{WORDS[i]} " for i in ids).encode()

    def save(self, folder: Path | str) -> None:
        """The words, a line each."""
        write_text(Path(folder) / "words.txt", "\n".join(WORDS) + "\n")


TOKENIZER = WordTokenizer()
_ACTOR = ReAct(Prompts("environment", PROMPTS))


def actor_prompt(
    task: HouseholdTask, strategy: Strategy, memory: Memory, steps: Sequence[Step], last_attempt: str
) -> str:
    """What the actor reads before each action."""
    situation = Situation(task, strategy, memory, tuple(steps), last_attempt)
    return str(_ACTOR.messages(situation)[0].text)


def reflector_prompt(task: HouseholdTask, memory: Memory, steps: Sequence[Step]) -> str:
    """What the reflector reads after a failed trial."""
    return str(reflection_messages(_ACTOR.prompts, task, Attempt(tuple(steps)), "", memory)[0].text)


def step_text(step: Step) -> str:
    """What a step adds to a trajectory in a prompt."""
    return f"\n{step.text}\nObservation: {step.observation}"
