"""The graph's method for all tasks at once: hundreds of trials in seconds instead of one after the other.

The prompts, the memory and the evaluator are the graph's own; with greedy decoding so are the trajectories.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import torch
from torch import Tensor

from ...generate import Sampling, generate_batch, left_padded, next_token
from ...model import GPT, KVCache
from ..evaluators import heuristic
from ..memory import Memory
from ..tasks.base import Step, Strategy
from .demonstrations import last_attempt_text
from .text import END, TOKENIZER, WORDS, actor_prompt, reflector_prompt
from .world import MAX_ACTIONS, HouseholdTask

LONGEST_REFLECTION = 32
"""words: all places, and what stands around them"""


class Ablation(StrEnum):
    """What is done to a reflection between the reflector and the memory."""

    NOTHING = "nothing"
    EMPTY = "empty"
    """it is lost"""
    SHUFFLED = "shuffled"
    """it goes to another task"""


@dataclass(frozen=True)
class Condition:
    """How a run is made."""

    strategy: Strategy
    window: int = 3
    """Ω, reflections shown"""
    ablation: Ablation = Ablation.NOTHING
    temperature: float = 0.7
    """of the actor; the reflector takes the likeliest words"""
    trials: int = 6
    """at most so many a task"""


@dataclass
class Run:
    """One task, trial after trial."""

    task: HouseholdTask
    memory: Memory
    trials: list[list[Step]] = field(default_factory=list)
    """trajectories; the first step of each is the first observation"""
    reflections: list[str] = field(default_factory=list)
    """as the reflector wrote them, one after each failure but the last"""
    solved_in: int | None = None
    """number of the trial, from 1"""


def run_all(model: GPT, tasks: Sequence[HouseholdTask], how: Condition, seed: int = 0) -> list[Run]:
    """Every task until success, at most ``how.trials`` times.

    Args:
        model: acts and reflects.
        tasks: with their houses.
        how: strategy, window, ablation, temperature, trials.
        seed: of what the actor draws.
    """
    generator = torch.Generator().manual_seed(seed)
    runs = [Run(task, Memory(how.window)) for task in tasks]
    for trial in range(1, how.trials + 1):
        trying = [run for run in runs if run.solved_in is None]
        if not trying:
            break
        for run, success in zip(trying, _attempt(model, trying, how, generator), strict=True):
            run.solved_in = trial if success else None
        failed = [run for run in trying if run.solved_in is None]
        if how.strategy.reflects and failed and trial < how.trials:
            _reflect(model, failed, how.ablation)
    return runs


def _attempt(model: GPT, runs: Sequence[Run], how: Condition, generator: torch.Generator) -> list[bool]:
    """One trial of every task; whether each succeeded."""
    houses = [run.task.environment() for run in runs]
    prompts = []
    for run, house in zip(runs, houses, strict=True):
        last = last_attempt_text(run.trials[-1]) if run.trials else ""
        run.trials.append([Step("", "", house.reset())])
        prompts.append(actor_prompt(run.task, how.strategy, run.memory, run.trials[-1], last))
    rows = Rows(model, [TOKENIZER.encode(prompt) for prompt in prompts], room=4 * MAX_ACTIONS)
    sampling, turn = Sampling(how.temperature), TOKENIZER.encode("Observation:")[0]
    success, over = [False] * len(runs), [False] * len(runs)
    while not all(over):  # every row takes the same four words a step: verb, noun, Observation:, answer
        verbs = next_token(rows.logits, rows.tokens, sampling, generator)
        rows.feed(verbs[:, None])
        nouns = next_token(rows.logits, rows.tokens, sampling, generator)
        answers = [TOKENIZER.eos_id] * len(runs)
        for i, (verb, noun) in enumerate(zip(verbs.tolist(), nouns.tolist(), strict=True)):
            if over[i]:
                continue
            action, steps = f"{WORDS[verb]} {WORDS[noun]}", runs[i].trials[-1]
            answer, _, success[i] = houses[i].step(action)
            steps.append(Step(action, action, answer))
            over[i] = success[i] or bool(heuristic(steps[1:], MAX_ACTIONS))
            answers[i] = TOKENIZER.encode(answer)[0]
        if not all(over):
            told = torch.tensor([[turn, answer] for answer in answers])
            rows.feed(torch.cat([nouns[:, None], told], dim=1))
    return success


def _reflect(model: GPT, failed: Sequence[Run], ablation: Ablation) -> None:
    """Each failure is put into words, from its trajectory and its memory, and remembered."""
    prompts = [TOKENIZER.encode(reflector_prompt(run.task, run.memory, run.trials[-1])) for run in failed]
    written = generate_batch(model, prompts, LONGEST_REFLECTION, stop=TOKENIZER.eos_id, temperature=0)
    for run, prompt, ids in zip(failed, prompts, written, strict=True):
        run.reflections.append(TOKENIZER.decode(ids[len(prompt) :]).removesuffix(END).strip())
    texts = [run.reflections[-1] for run in failed]
    if ablation is Ablation.EMPTY or (ablation is Ablation.SHUFFLED and len(failed) == 1):
        texts = [""] * len(failed)
    elif ablation is Ablation.SHUFFLED:
        texts = [*texts[1:], texts[0]]  # everybody gets a neighbour's
    for run, text in zip(failed, texts, strict=True):
        run.memory = run.memory.add(text)


class Rows:
    """Prompts of different lengths that go on together: shorter ones are filled up on the left, unseen.

    Attributes:
        tokens: (B, S) all ids so far.
        logits: (B, V) of what follows.
    """

    def __init__(self, model: GPT, prompts: Sequence[Sequence[int]], room: int) -> None:
        width = max(map(len, prompts))
        self.model = model
        self.padding = torch.tensor([width - len(prompt) for prompt in prompts])  # (B,)
        self.cache = KVCache(model.config, len(prompts), width + room)
        self.tokens = torch.zeros(len(prompts), 0, dtype=torch.long)
        self.logits = torch.empty(0)
        self.feed(torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]))

    @torch.inference_mode()
    def feed(self, ids: Tensor) -> None:
        """(B, T) more ids."""
        positions, mask = left_padded(self.padding, self.cache.length, ids.size(1))
        hidden = self.model.hidden(ids, cache=self.cache, positions=positions, mask=mask)
        self.logits = self.model.lm_head(hidden[:, -1])
        self.tokens = torch.cat([self.tokens, ids], dim=1)
