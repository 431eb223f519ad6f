"""The letters that name the axes, one legend for the whole project.

===  ==========================================================
B    batch: independent rows
T    time: positions of the tokens asked about (queries)
S    source: positions that can be attended to (keys, values)
C    channels: width of the residual stream, ``n_embd``
H    heads: ``n_head``
D    width of one head: ``C // H``
V    vocabulary: ``vocab_size``
R    rank of a low-rank update
===  ==========================================================

The aliases below are ``torch.Tensor`` to a type checker; the string is for the reader.
"""

from typing import Annotated

from torch import Tensor

Tokens = Annotated[Tensor, "B T", "int64"]
Hidden = Annotated[Tensor, "B T C"]
Heads = Annotated[Tensor, "B H T D"]
Weights = Annotated[Tensor, "B H T S"]
Mask = Annotated[Tensor, "broadcasts to B H T S", "bool: False hides"]
Logits = Annotated[Tensor, "B T V"]
Scalar = Annotated[Tensor, ""]
