"""Day 11: fine-tuning on instructions: which tokens are learned, who sees whom, what passes a frozen base."""

from typing import Any

import torch
from torch import Tensor

from ...adapters.linear import LoRALinearFunction
from ...sft.batches import inputs_and_targets
from ...sft.documents import DocumentMask
from ..engine import Exercise, Mutant, Step, Wrong, equals, leaves_inputs, same_form

# --- day11.answer_targets -----------------------------------------------------------------------------------

IGNORE = -100


def _targets(ids: Tensor, is_answer: Tensor) -> tuple[Tensor, Tensor]:
    return ids[:-1].clone(), torch.where(is_answer[1:], ids[1:], IGNORE)


def _targets_cases() -> list[tuple[Any, ...]]:
    return [
        (torch.tensor(ids), torch.tensor(answer, dtype=torch.bool))
        for ids, answer in (
            ([11, 12, 13, 14, 15, 16], [0, 0, 0, 1, 1, 1]),
            ([21, 22, 23], [0, 1, 1]),
            ([31, 32, 33, 34, 35, 36, 37], [0, 0, 1, 1, 0, 1, 1]),
            ([41, 41, 41, 42, 41], [0, 0, 0, 0, 1]),
        )
    ]


def _prompt_is_ignored(fn: Any) -> None:
    ids, is_answer = _targets_cases()[0]
    targets = fn(ids, is_answer)[1].tolist()
    if any(t in targets for t in ids[:3].tolist()):
        raise Wrong("the prompt is learned: only answers' tokens are targets", f"targets {targets}")
    missing = [t for t in ids[3:].tolist() if t not in targets]
    if missing:
        raise Wrong("an answer's token is no target", f"{missing} of the answer are not in {targets}")


ANSWER_TARGETS = Exercise(
    name="day11.answer_targets",
    title="learn the answer, not the question",
    stub='''
def answer_targets(ids, is_answer):
    """Inputs and targets of one example, for next-token prediction.

    ids is (L,) int64: the prompt, then the answer (a chat has several of each). is_answer is (L,) bool. Returns
    the inputs (L − 1,) and the targets (L − 1,): the target at t is the id after input t where that id is the
    answer's, and −100, which the loss leaves out, where it is not.
    """
    raise NotImplementedError
''',
    solution=inputs_and_targets,
    reference=_targets,
    steps=(
        same_form(_targets, _targets_cases, "a pair of (L − 1,) int64 tensors"),
        leaves_inputs(_targets_cases),
        Step("has the answer's tokens as targets, and no others", _prompt_is_ignored),
        equals(_targets, _targets_cases, title="equals the library, also on chats of several answers"),
    ),
    hints=(
        "Input t predicts id t + 1: which of the two decides whether it counts?",
        "inputs = ids[:-1]; a target counts where is_answer[1:] is true.",
        "return ids[:-1], torch.where(is_answer[1:], ids[1:], -100)",
    ),
    cases=_targets_cases,
    mutants=(
        Mutant("the prompt is learned too", "only the answer is", lambda i, a: (i[:-1], i[1:])),
        Mutant(
            "the mask is not shifted",
            "the target's own place decides: the answer's first token is predicted from the prompt's last",
            lambda i, a: (i[:-1], torch.where(a[:-1], i[1:], IGNORE)),
        ),
        Mutant(
            "the targets are not shifted",
            "a token would predict itself",
            lambda i, a: (i[:-1], torch.where(a[:-1], i[:-1], IGNORE)),
        ),
        Mutant(
            "the mask is turned round",
            "the answer is learned, not the prompt",
            lambda i, a: (i[:-1], torch.where(a[1:], IGNORE, i[1:])),
        ),
        Mutant(
            "0 is ignored",
            "0 is a token like any other: cross_entropy leaves out −100",
            lambda i, a: (i[:-1], torch.where(a[1:], i[1:], 0)),
        ),
        Mutant(
            "−1 is ignored",
            "cross_entropy leaves out −100",
            lambda i, a: (i[:-1], torch.where(a[1:], i[1:], -1)),
        ),
        Mutant(
            "the inputs are hidden",
            "the model must read the prompt; it only does not learn it",
            lambda i, a: (torch.where(a[:-1], i[:-1], IGNORE), torch.where(a[1:], i[1:], IGNORE)),
        ),
        Mutant(
            "everything after the first answer is learned",
            "in a chat, later questions are not",
            lambda i, a: (i[:-1], torch.where(a.cummax(0)[0][1:], i[1:], IGNORE)),
        ),
        Mutant(
            "only the last answer is learned",
            "every answer of a chat is",
            lambda i, a: (i[:-1], torch.where(a.flip(0).cummin(0)[0].flip(0)[1:], i[1:], IGNORE)),
        ),
        Mutant(
            "the first answer token is not learned",
            "it is predicted from the prompt's last token",
            lambda i, a: (i[:-1], torch.where(a[1:] & a[:-1], i[1:], IGNORE)),
        ),
        Mutant(
            "shifted the wrong way",
            "the target is the next id, not the one before",
            lambda i, a: (i[1:], torch.where(a[1:], i[:-1], IGNORE)),
        ),
        Mutant(
            "input mutated",
            "the ids belong to the caller",
            lambda i, a: (i[:-1].clone(), i.masked_fill_(~a, IGNORE)[1:]),
        ),
    ),
    alternatives=(
        lambda ids, is_answer: (ids[:-1], ids[1:].masked_fill(~is_answer[1:], -100)),
        lambda ids, is_answer: (
            ids[: len(ids) - 1],
            torch.tensor([int(i) if a else -100 for i, a in zip(ids, is_answer, strict=True)][1:]),
        ),
    ),
)

# --- day11.packing_mask -------------------------------------------------------------------------------------


def _mask(lengths: list[int]) -> Tensor:
    return DocumentMask(lengths).dense()


def _mask_cases() -> list[tuple[Any, ...]]:
    return [([3, 2],), ([1, 4, 2],), ([5],), ([1, 1, 1],), ([2, 2, 3],)]


def _documents(lengths: list[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


def _same_document(lengths: list[int]) -> Tensor:
    d = _documents(lengths)
    return d[:, None] == d[None, :]


def _triangle(lengths: list[int], diagonal: int = 0) -> Tensor:
    return torch.ones(sum(lengths), sum(lengths), dtype=torch.bool).tril(diagonal)


def _mask_properties(fn: Any) -> None:
    mask = fn([3, 2])
    if mask.triu(1).any():
        raise Wrong(
            "future leak: a position may see only itself and what came before", "True above the diagonal"
        )
    if mask[3:, :3].any():
        raise Wrong(
            "the second document reads the first: hide what lies before its start",
            f"row 3 is {mask[3].tolist()}",
        )
    if not mask.diagonal().all():
        raise Wrong("a position sees itself, else its first row of weights is empty", "False on the diagonal")


PACKING_MASK = Exercise(
    name="day11.packing_mask",
    title="several examples in one row, none of which sees another",
    stub='''
def packing_mask(lengths):
    """Who may see whom when documents of these lengths lie one after another in one row.

    Returns (N, N) bool, N the sum of the lengths: row t is true at the positions that t may attend to, which
    are those of its own document up to t itself.
    """
    raise NotImplementedError
''',
    solution=DocumentMask.dense,
    reference=_mask,
    steps=(
        same_form(_mask, _mask_cases, "an (N, N) bool tensor"),
        leaves_inputs(_mask_cases),
        Step("keeps the future and other documents hidden", _mask_properties),
        equals(_mask, _mask_cases, title="equals the library for any lengths"),
    ),
    hints=(
        "Two conditions at once: not later, and the same document.",
        "Number the documents: repeat_interleave gives each position its document's number.",
        "d = arange(len(lengths)).repeat_interleave(tensor(lengths)); (d[:, None] == d[None]).tril()",
    ),
    cases=_mask_cases,
    mutants=(
        Mutant("other documents are seen", "the causal mask alone lets them through", _triangle),
        Mutant("the future is seen", "within a document, too, only what came before", _same_document),
        Mutant(
            "a position does not see itself",
            "the diagonal belongs to the mask",
            lambda n: _same_document(n) & _triangle(n, -1),
        ),
        Mutant(
            "only itself is seen", "the document's earlier tokens too", lambda n: torch.eye(sum(n)).bool()
        ),
        Mutant(
            "turned over",
            "row: who looks; column: who is seen",
            lambda n: _same_document(n) & _triangle(n).T,
        ),
        Mutant("what is hidden is true", "true shows a key, false hides it", lambda n: ~_mask(n)),
        Mutant(
            "only other documents are seen",
            "equal numbers, not unlike ones",
            lambda n: ~_same_document(n) & _triangle(n),
        ),
        Mutant(
            "earlier documents are seen",
            "not one's own and all before, but one's own alone",
            lambda n: _documents(n)[:, None] >= _documents(n)[None, :],
        ),
        Mutant(
            "every document has the first one's length",
            "each has its own",
            lambda n: (
                (torch.arange(sum(n)) // n[0])[:, None] == (torch.arange(sum(n)) // n[0])[None, :]
            ).tril(),
        ),
        Mutant(
            "the order is lost",
            "documents lie as they are given, not by length",
            lambda n: _mask(sorted(n, reverse=True)),
        ),
        Mutant("numbers instead of bool", "attention wants true and false", lambda n: _mask(n).float()),
    ),
    alternatives=(
        lambda lengths: torch.block_diag(*[torch.ones(n, n) for n in lengths]).tril().bool(),
        lambda lengths: torch.tensor(
            [
                [
                    s <= t and not any(s < end <= t for end in torch.tensor(lengths).cumsum(0).tolist())
                    for s in range(sum(lengths))
                ]
                for t in range(sum(lengths))
            ]
        ),
    ),
)

# --- day11.gradient_through ---------------------------------------------------------------------------------


def _randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _through(grad: Tensor, W: Tensor, A: Tensor, B: Tensor, s: float) -> Tensor:
    return grad @ W + s * (grad @ B) @ A


def _through_cases() -> list[tuple[Any, ...]]:
    sizes = [(3, 5, 4, 2, 2.0), (1, 6, 6, 3, 0.5), (4, 4, 4, 1, 8.0), (2, 7, 3, 3, 1.5)]
    return [
        (_randn(i, n, o), _randn(9 + i, o, n_in), _randn(18 + i, r, n_in), _randn(27 + i, o, r), s)
        for i, (n, o, n_in, r, s) in enumerate(sizes)
    ]


def _as_autograd(fn: Any) -> None:
    grad, W, A, B, s = _through_cases()[0]
    x = _randn(40, grad.size(0), W.size(1)).requires_grad_()
    (right,) = torch.autograd.grad(x @ W.T + s * (x @ A.T) @ B.T, x, grad)
    got = fn(grad, W, A, B, s)
    off = (got - right).abs().max().item()
    if off > 1e-9:
        raise Wrong("autograd finds another gradient for x Wᵀ + s·(x Aᵀ) Bᵀ", f"it differs by {off:.3f}")


GRADIENT_THROUGH = Exercise(
    name="day11.gradient_through",
    title="what a frozen layer passes on",
    stub='''
def gradient_through(grad, W, A, B, s):
    """The gradient of the loss by x, for y = x Wᵀ + s·(x Aᵀ) Bᵀ with W frozen (QLoRA, equation 5).

    grad (n, out) is the gradient by y; W (out, in) the de-quantised weight, A (r, in), B (out, r). Returns
    (n, in). W gets no gradient itself, and yet it is needed here: layers below learn through it.
    """
    raise NotImplementedError
''',
    solution=LoRALinearFunction.backward,
    reference=_through,
    steps=(
        same_form(_through, _through_cases, "an (n, in) tensor"),
        leaves_inputs(_through_cases),
        Step("agrees with autograd", _as_autograd),
        equals(_through, _through_cases, 1e-9),
    ),
    hints=(
        "Two paths lead from x to y, so two gradients come back and add.",
        "For y = x Mᵀ the gradient by x is grad @ M. What is M here?",
        "return grad @ W + s * (grad @ B) @ A",
    ),
    cases=_through_cases,
    mutants=(
        Mutant("the base is left out", "frozen is not cut off: it passes the gradient on",
               lambda g, W, A, B, s: s * g @ B @ A),
        Mutant("the update is left out", "x goes through A and B as well", lambda g, W, A, B, s: g @ W),
        Mutant("not scaled", "the update is scaled by s", lambda g, W, A, B, s: g @ W + g @ B @ A),
        Mutant("everything is scaled", "only the update", lambda g, W, A, B, s: s * (g @ W + g @ B @ A)),
        Mutant("scaled twice", "once: s stands once in the forward pass", lambda g, W, A, B, s: g @ W + s * s * g @ B @ A),
        Mutant("divided by s", "times s, as in the forward pass", lambda g, W, A, B, s: g @ W + g @ B @ A / s),
        Mutant("the update is subtracted", "both paths add", lambda g, W, A, B, s: g @ W - s * g @ B @ A),
        Mutant("the gradient alone", "it must go back through the weights", lambda g, W, A, B, s: g),
        Mutant("the base counts twice", "once for each path", lambda g, W, A, B, s: 2 * g @ W + s * g @ B @ A),
        Mutant(
            "the mean over the rows",
            "each row has its own gradient",
            lambda g, W, A, B, s: _through(g, W, A, B, s) / len(g),
        ),
        Mutant(
            "input mutated",
            "grad belongs to the caller: others read it, too",
            lambda g, W, A, B, s: g @ W + g.mul_(s) @ B @ A,
        ),
    ),
    alternatives=(
        lambda grad, W, A, B, s: grad @ (W + s * B @ A),
        lambda grad, W, A, B, s: torch.einsum("no,oi->ni", grad, W) + torch.einsum("no,or,ri->ni", grad, s * B, A),
    ),
)  # fmt: skip

EXERCISES = (ANSWER_TARGETS, PACKING_MASK, GRADIENT_THROUGH)
