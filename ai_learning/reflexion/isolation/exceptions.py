"""Exceptions of the standard library that code raises and tests name: the same class on both sides.

A list, and not any class of the library: ``unittest.SkipTest`` in the judge would end a test as if it held.
"""

import copy
import dataclasses
import decimal
import graphlib
import json
import queue
import re
import statistics
import struct

FIELDS: dict[type[BaseException], tuple[str, ...]] = {
    json.JSONDecodeError: ("msg", "doc", "pos", "lineno", "colno"),
    re.error: ("msg", "pattern", "pos", "lineno", "colno"),
    dataclasses.FrozenInstanceError: (),
    decimal.DecimalException: (),
    decimal.DivisionByZero: (),
    decimal.InvalidOperation: (),
    decimal.Overflow: (),
    queue.Empty: (),
    queue.Full: (),
    statistics.StatisticsError: (),
    graphlib.CycleError: (),
    struct.error: (),
    copy.Error: (),
}
"""their attributes besides ``args``"""
LIBRARY = {f"{kind.__module__}.{kind.__qualname__}": kind for kind in FIELDS}
"""by the names under which they travel"""
