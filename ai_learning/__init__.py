"""The road from text to self-reflection, one room a stage.

text → tokens          ``text``, ``tokenizers``, ``token_file``
tokens → batches       ``batches``
batches → logits       ``model`` (attention, GPT-1, GPT-2), ``presets``
logits → loss          ``loss``
loss → a trained model ``optim``, ``train``, ``checkpoint``
model → text           ``generate``, ``evaluate``
model → a task         ``finetune`` (GPT-1's heads), ``sft`` (instructions), ``adapters`` (LoRA, NF4, QLoRA)
model → tools          ``toolformer``
model → reflection     ``reflexion``, ``chat_model``
"""

__version__ = "0.1.0"
