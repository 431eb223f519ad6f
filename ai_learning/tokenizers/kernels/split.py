# mypy: ignore-errors
# (numba gives the types: every value is an int64)
"""Where words start: 64 bytes at a time, without a regular expression.

A text is cut into blocks of up to 64 bytes that end with a whole character. One bit a byte says what it is,
and a few shifts say where words start: the "previous byte is a letter" mask is the letter mask shifted by
one. What the next block needs to know of the last byte of this one is the carry.
"""

from .machine import classify64, kernel, load8, load64, lowest_bit, shr, store64
from .state import CLASSES, FAMILY, GPT2, GPT4, MAX_DIGITS, WHOLE_TAIL


@kernel
def class_at(classes, place):
    """Class of the character at ``place``, and its length in bytes."""
    first = load8(place)
    if first < 0x80:
        return load8(classes + first), 1
    if first < 0xE0:
        return load8(classes + ((first & 0x1F) << 6 | load8(place + 1) & 0x3F)), 2
    if first < 0xF0:
        point = (first & 0x0F) << 12 | (load8(place + 1) & 0x3F) << 6 | load8(place + 2) & 0x3F
        return load8(classes + point), 3
    point = (first & 0x07) << 18 | (load8(place + 1) & 0x3F) << 12
    point |= (load8(place + 2) & 0x3F) << 6 | load8(place + 3) & 0x3F
    return load8(classes + (point if point < 0x110000 else 0)), 4


@kernel
def contraction(place, room, any_case):
    """Bytes of the contraction at the apostrophe at ``place`` ('s, 're …); 0 if there is none."""
    one, two = load8(place + 1), load8(place + 2)
    if any_case:
        if one == 0xC5 and two == 0xBF and room >= 3:  # the long s, which ignoring case makes an s
            return 3
        if one < 0x80:
            one |= 0x20
        if two < 0x80:
            two |= 0x20
    if room >= 2 and (one == 115 or one == 100 or one == 109 or one == 116):  # s d m t
        return 2
    if room >= 3 and (
        (one == 108 and two == 108) or (one == 118 and two == 101) or (one == 114 and two == 101)
    ):  # ll ve re
        return 3
    return 0


@kernel
def block_masks(text, position, end, classes):
    """What each byte of the block at ``position`` is.

    Returns:
        length; letters, numbers, spaces, blanks, newlines, apostrophes, bytes above 0x7F, continuation bytes.
    """
    place = text + position
    letters, numbers, spaces, blanks, newlines, apostrophes, high, inside = classify64(place)
    length = min(64, end - position)
    if length < end - position:
        if high:
            while load8(place + length) & 0xC0 == 0x80:  # never cut a character
                length -= 1
        if shr(apostrophes, length - 3):  # nor a contraction: let the next block start with it
            length = length - 3 + lowest_bit(shr(apostrophes, length - 3))
    if length < 64:
        valid = (1 << length) - 1
        letters &= valid
        numbers &= valid
        spaces &= valid
        blanks &= valid
        newlines &= valid
        apostrophes &= valid
        high &= valid
        inside &= valid
    leads = high & ~inside
    while leads:
        i = lowest_bit(leads)
        leads &= leads - 1
        kind, width = class_at(classes, place + i)
        covered = ((1 << width) - 1) << i
        letters |= covered & -(kind == 1)
        numbers |= covered & -(kind == 2)
        spaces |= covered & -(kind == 3)
    return length, letters, numbers, spaces, blanks, newlines, apostrophes, high, inside


@kernel
def space_follows(text, position, end, classes):
    """Whether white space goes on at ``position``; 1 at the end of the text, where it is not split."""
    if position >= end:
        return 1
    kind, _ = class_at(classes, text + position)
    return 1 if kind == 3 else 0


@kernel
def to_first_byte(bits, inside):
    """Move bits on continuation bytes to the first byte of their character."""
    moving = bits & inside
    while moving:
        bits = (bits & ~moving) | shr(moving, 1)
        moving = bits & inside
    return bits


@kernel
def gpt2_block(text, position, end, classes, carry):
    """Where words start in the block at ``position``, by GPT-2's pattern.

    Returns:
        starts (one bit a byte), length of the block, carry.
    """
    length, letters, numbers, spaces, blanks, _, apostrophes, high, inside = block_masks(
        text, position, end, classes
    )
    last = length - 1
    valid = shr(-1, 63 - last)
    other = valid & ~(letters | numbers | spaces)
    after_blank = blanks << 1 | carry & 1
    after_space = spaces << 1 | shr(carry, 1) & 1
    run_end = spaces & ~(shr(spaces, 1) | space_follows(text, position + length, end, classes) << last)
    if high:
        run_end = to_first_byte(run_end, inside)
    # a run of white space gives its last character away; a blank there joins the word that follows
    starts = spaces & ~after_space | run_end
    starts |= letters & ~(letters << 1 | shr(carry, 2) & 1 | after_blank)
    starts |= numbers & ~(numbers << 1 | shr(carry, 3) & 1 | after_blank)
    starts |= other & ~(other << 1 | shr(carry, 4) & 1 | after_blank)
    candidates = apostrophes & starts & shr(letters, 1)
    while candidates:
        i = lowest_bit(candidates)
        candidates &= candidates - 1
        width = contraction(text + position + i, end - position - i, 0)
        if width:
            starts &= ~(1 << i + 1)
            if i + width < length:
                starts |= 1 << i + width
    carry = shr(blanks, last) & 1 | (shr(spaces, last) & 1) << 1 | (shr(letters, last) & 1) << 2
    carry |= (shr(numbers, last) & 1) << 3 | (shr(other, last) & 1) << 4
    return starts, length, carry


@kernel
def newline_ahead(text, position, end, classes, whole_tail):
    """Whether white space from ``position`` on holds another newline (or ends the whole text)."""
    while position < end:
        first = load8(text + position)
        if first == 10 or first == 13:
            return 1
        kind, width = class_at(classes, text + position)
        if kind != 3:
            return 0
        position += width
    return whole_tail


@kernel
def gpt4_block(text, position, end, classes, carry, max_digits, whole_tail):
    """The same by GPT-4's pattern."""
    length, letters, numbers, spaces, blanks, newlines, apostrophes, high, inside = block_masks(
        text, position, end, classes
    )
    last = length - 1
    valid = shr(-1, 63 - last)
    other = valid & ~(letters | numbers | spaces)
    after_other = other << 1 | shr(carry, 4) & 1
    # newlines right after punctuation belong to it: an addition carries through each such run and clears it
    tail = newlines & ~(newlines + (newlines & (after_other | shr(carry, 5) & 1)))
    spaces_left = spaces & ~tail
    flat = spaces & ~newlines
    after_blank = blanks << 1 | carry & 1
    run_end = flat & ~(shr(spaces, 1) | space_follows(text, position + length, end, classes) << last)
    if high:
        run_end = to_first_byte(run_end, inside)
    starts = spaces_left & ~(spaces_left << 1 | shr(carry, 1) & 1) | run_end
    # white space up to its last newline is one word
    lines = flat & ((newlines & spaces_left) << 1 | shr(carry, 6) & 1)
    while lines:
        i = lowest_bit(lines)
        lines &= lines - 1
        if not newline_ahead(text, position + i, end, classes, whole_tail):
            starts |= 1 << i
    # one character that is no letter, number or newline joins the letters after it
    other_starts = other & ~(after_other | after_blank)
    single = other_starts
    if high & single:
        wide = single & high
        single &= ~wide
        while wide:
            i = lowest_bit(wide)
            wide &= wide - 1
            _, width = class_at(classes, text + position + i)
            single |= 1 << i + width - 1
    starts |= other_starts
    starts |= letters & ~((letters | flat | single) << 1 | shr(carry, 2) & 1)
    digits = shr(carry, 8)
    figures = numbers & ~inside
    if figures:
        goes_on = numbers << 1 | shr(carry, 3) & 1
        while figures:
            i = lowest_bit(figures)
            figures &= figures - 1
            digits = digits + 1 if shr(goes_on, i) & 1 else 0
            if digits == max_digits:
                digits = 0
            if digits == 0:
                starts |= 1 << i
    candidates = apostrophes & other_starts & shr(letters, 1)
    while candidates:
        i = lowest_bit(candidates)
        candidates &= candidates - 1
        width = contraction(text + position + i, end - position - i, 1)
        if width and i + width < length:
            starts |= 1 << i + width
    carry = shr(blanks, last) & 1 | (shr(spaces_left, last) & 1) << 1
    carry |= (shr(letters | flat | single, last) & 1) << 2 | (shr(numbers, last) & 1) << 3
    carry |= (shr(other, last) & 1) << 4 | (shr(tail, last) & 1) << 5
    carry |= (shr(newlines & spaces_left, last) & 1) << 6 | digits << 8
    return starts, length, carry


@kernel
def next_block(text, position, end, state, carry):
    """``gpt2_block`` or ``gpt4_block``, as the state says; without a pattern, one word."""
    family = load64(state + 8 * FAMILY)
    classes = load64(state + 8 * CLASSES)
    if family == GPT2:
        return gpt2_block(text, position, end, classes, carry)
    if family == GPT4:
        max_digits, whole_tail = load64(state + 8 * MAX_DIGITS), load64(state + 8 * WHOLE_TAIL)
        return gpt4_block(text, position, end, classes, carry, max_digits, whole_tail)
    return 0, end - position, 0


@kernel
def split_starts(text, end, state, out):
    """Write where each word starts (int64) to ``out``; returns how many. To test the splitters alone."""
    position = carry = found = 0
    while position < end:
        starts, length, carry = next_block(text, position, end, state, carry)
        while starts:
            store64(out + 8 * found, position + lowest_bit(starts))
            starts &= starts - 1
            found += 1
        position += length
    return found
