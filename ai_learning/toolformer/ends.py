"""Where a call that is being written ends: at ``→`` or ``</API>``, however the tokenizer cuts them."""

from functools import cached_property

from .models import LanguageModel


class CallEnd:
    """Tells whether new ids have reached one of the marks, and what stands before it.

    In a published vocabulary a mark may be part of a longer token (``)]`` is one in GPT-2's): so the text
    decides. Only ids that could complete a mark are looked at closely.
    """

    def __init__(self, lm: LanguageModel) -> None:
        self.lm = lm
        self.marks = (lm.how.arrow, lm.how.end)
        ids = (lm.arrow_ids, lm.end_ids)
        self.single = {i[0] for i in ids} if all(lm.mark(m) != lm.encode(m) for m in self.marks) else set()

    @cached_property
    def suspects(self) -> frozenset[int]:
        """Ids whose text holds the last character of a mark."""
        last = {mark[-1] for mark in self.marks}
        return frozenset(i for i, text in enumerate(self.lm.token_texts) if any(c in text for c in last))

    def __call__(self, ids: list[int]) -> bool:
        """Whether the newest id completes a mark, or ends the document."""
        if ids[-1] == self.lm.eos_id:
            return True
        if self.single:
            return ids[-1] in self.single
        return ids[-1] in self.suspects and self.cut(ids) is not None

    def cut(self, ids: list[int]) -> tuple[str, str] | None:
        """The text before the first mark, and that mark; ``None`` where there is none yet."""
        text = self.lm.decode(ids)
        places = [(text.find(mark), mark) for mark in self.marks if mark in text]
        if not places:
            return None
        place, mark = min(places)
        return text[:place], mark
