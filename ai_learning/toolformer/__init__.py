"""Toolformer: a language model teaches itself to use tools (Schick et al. 2023, arXiv 2302.04761).

    plain text ─ annotate ─ filter ─ corpus ─ train ─ infer

``tools`` what can be called · ``calls`` how a call is written · ``models`` our GPT or any model of
transformers · ``annotate`` sample and execute calls · ``filter`` keep those that make the text more likely ·
``corpus`` the text with its calls · ``infer`` generation that stops to ask a tool.
"""

from .annotate import Document, annotate, execute_calls, sample_calls
from .calls import BYTES, MARKED, PLAIN, Call, CallFormat, find_calls, parse_call, strip_calls
from .corpus import RowBatches, best_calls, interleave, interleave_ids, training_rows
from .filter import Annotated, Candidate, filter_calls, loss_weights, refilter, weighted_loss
from .infer import Generation, ToolUse, generate_with_tools
from .models import GPTModel, LanguageModel, TransformersModel, as_language_model
from .neural import PipelineTool, RetrievalQA, Translator
from .search import WikiSearch
from .settings import PAPER, Settings
from .tools import Calculator, Calendar, FactQA, Tool, from_langchain, run_call

__all__ = [
    "BYTES",
    "MARKED",
    "PAPER",
    "PLAIN",
    "Annotated",
    "Calculator",
    "Calendar",
    "Call",
    "CallFormat",
    "Candidate",
    "Document",
    "FactQA",
    "GPTModel",
    "Generation",
    "LanguageModel",
    "PipelineTool",
    "RetrievalQA",
    "RowBatches",
    "Settings",
    "Tool",
    "ToolUse",
    "TransformersModel",
    "Translator",
    "WikiSearch",
    "annotate",
    "as_language_model",
    "best_calls",
    "execute_calls",
    "filter_calls",
    "find_calls",
    "from_langchain",
    "generate_with_tools",
    "interleave",
    "interleave_ids",
    "loss_weights",
    "parse_call",
    "refilter",
    "run_call",
    "sample_calls",
    "strip_calls",
    "training_rows",
    "weighted_loss",
]
