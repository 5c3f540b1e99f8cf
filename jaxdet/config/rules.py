"""What a key is, and the rules for values. Rules say in words what is right, and test it."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

LARGEST = 2**31 - 1  # steps and random keys are int32 on the device


class Rule(NamedTuple):
    """What is right for a value, in words for the user, and a test that raises for no value at all."""

    words: str
    test: Callable[[Any], bool]


class Key(NamedTuple):
    """A setting: all there is to know of it.

    meaning: a phrase for docs/config.md. unit: of the value. absent: where there are configs older than the
    key, the value that they were made with.
    """

    name: str
    default: Any
    rule: Rule
    meaning: str
    unit: str = ""
    absent: Any = None


def whole(lowest, words=""):
    """Rule: a whole number (no bool) that is not below `lowest` and fits the device's integers."""
    words = words or f"at least {lowest}"
    return Rule(f"a whole number, {words}", lambda v: type(v) is int and lowest <= v <= LARGEST)


def number(words, test=lambda v: True):
    """Rule: a finite number (no bool) that passes `test`."""
    return Rule(f"a number, {words}", lambda v: type(v) in (int, float) and -math.inf < v < math.inf and test(v))


def several(words, each, test):
    """Rule: a tuple whose items all follow the rule `each`, and that passes `test`."""
    return Rule(words, lambda v: type(v) in (tuple, list) and all(map(each.test, v)) and test(v))


def one_of(*choices):
    """Rule: one of these texts; the first may be empty, for none."""
    first = choices[0] or "'' (none)"
    return Rule(f"one of {', '.join([first, *choices[1:]])}", lambda v: type(v) is str and v in choices)


FRACTION = number("0 to 1", lambda v: 0 <= v <= 1)
NOT_NEGATIVE = number("0 or more", lambda v: v >= 0)
ABOVE_0 = number("above 0", lambda v: v > 0)
FLAG = Rule("True or False", lambda v: type(v) is bool)
TEXT = Rule("a text", lambda v: type(v) is str)
