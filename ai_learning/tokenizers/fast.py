"""The compiled path."""

def can_compile(tokenizer): return False
def is_loaded(): return False
def make_encoder(tokenizer): raise NotImplementedError
class FastEncoder: pass
