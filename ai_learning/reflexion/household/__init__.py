"""A reproduction of Reflexion's main result that needs no network and no GPU: minutes on a laptop.

world.py            a household made of text, in which only memory from trial to trial helps
text.py             the prompts (the graph's own) and their words as ids
teacher.py          a script that sees the prompts and writes demonstrations
demonstrations.py   … as sequences to learn from
model.py            a small GPT
training.py         … trained to act and to reflect
runner.py           the method for all tasks at once
experiment.py       success by trial: none, last attempt, reflexion, and the controls

``ai-learning reflexion demo`` runs it all. Nothing scripted takes part in what is measured.
"""
