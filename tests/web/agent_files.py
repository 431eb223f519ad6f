"""Small files of the kinds that the agents' panel opens, written by the library itself."""

import math
from pathlib import Path

from ai_learning.reflexion.trace import Event, TraceFile
from ai_learning.toolformer.calls import Call
from ai_learning.toolformer.filter import Annotated, Candidate
from ai_learning.toolformer.store import AnnotatedCorpus

TEXT = "The shop sold 12 apples and 30 pears, which makes 42 pieces of fruit in one day."


def write_annotated(folder: Path) -> None:
    """Four calls: one that helps, two that do not, one that failed."""

    def tried(word: str, call: Call, result: str | None, losses: tuple[float, float, float]) -> Candidate:
        place = TEXT.index(word)
        nothing, alone, plus = losses
        error = None if result else "Error: division by zero"
        kept = min(nothing, alone) - plus >= 1
        return Candidate(place, place, call, result, error, 0.12, plus, nothing, alone, kept)

    nan = math.nan
    calls = (
        tried("42", Call("Calculator", "12 + 30"), "42", (3.2, 2.9, 0.6)),
        tried("apples", Call("WikiSearch", "apple"), "An apple is a round fruit.", (1.2, 1.1, 1.3)),
        tried("day", Call("Calendar", ""), "Today is Monday.", (0.9, 0.95, 0.7)),
        tried("fruit", Call("Calculator", "12 / 0"), None, (nan, nan, nan)),
    )
    AnnotatedCorpus(folder, format="jsonl").write([Annotated(TEXT, calls, "0")])


def write_trace(folder: Path) -> None:
    """A task that is solved in the second trial."""
    advice = "An even number of values has two in the middle: their mean is the median."
    spent = {"input_tokens": 60, "output_tokens": 24, "seconds": 0.5, "attempts": 1, "errors": []}
    verdict = {"answer": "", "actions": 1}
    first = "def median(xs):\n    return sorted(xs)[len(xs) // 2]"
    second = "def median(xs):\n    s, n = sorted(xs), len(xs)\n    return (s[(n - 1) // 2] + s[n // 2]) / 2"
    prompt = [["system", "Write the function."], ["user", "def median(xs): ..."]]
    steps = [
        ("act", 1, {"prompt": prompt, "text": first, **spent}),
        (
            "evaluate",
            1,
            {"success": False, "solved": False, "feedback": "median([1, 2, 3, 4]) is 3", **verdict},
        ),
        ("reflect", 1, {"text": advice, "reflection": advice, **spent}),
        ("act", 2, {"prompt": [*prompt, ["user", advice]], "text": second, **spent}),
        ("evaluate", 2, {"success": True, "solved": True, "feedback": "all tests passed", **verdict}),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    trace = TraceFile(folder / "trace.jsonl")
    for clock, (node, trial, data) in enumerate(steps, 1):
        trace.append(Event("median", clock, node, trial, data))
