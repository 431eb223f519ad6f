"""How untrusted Python is held and judged. Standard library only: the fork server imports nothing else.

Read in this order:

- ``wire.py``: which values may pass between the two processes, and how they are written
- ``peer.py``: calling functions that live in the other process
- ``judge.py``: the trusted side, which runs the tests; ``asserts.py`` words what failed
- ``worker.py``: the untrusted side, which runs the code
- ``supervisor.py``: starts both, watches clock, memory and output, kills everything
- ``server.py``: the fork server, once a process, and what it could put in force
- ``jail.py`` (namespaces), ``seccomp.py``, ``landlock.py``, ``limits.py``, ``linux.py`` (system calls): the
  walls
"""
