"""Captions that pictures of photographs' models are drawn for (paper section 5.1; the authors' talk)."""

from __future__ import annotations

NOVEL = (  # scenes that no photograph shows
    "a stop sign is flying in blue skies .",
    "a herd of elephants flying in the blue skies .",
    "a toilet seat sits open in the grass field .",
    "a person skiing on sand clad vast desert .",
    "a pale yellow school bus is flying in blue skies .",
)
COMPARED = (  # what photographs do show; the paper has the first drawn by four systems
    "a group of people walk on a beach with surf boards .",
    "a large commercial airplane flying in blue skies .",
)
FLIPS = (  # colours, backgrounds, objects: a group differs in a word or two
    tuple(f"a {colour} school bus parked in a parking lot ." for colour in ("yellow", "red", "green", "blue")),
    tuple(f"a very large commercial plane flying in {sky} skies ." for sky in ("clear", "blue", "rainy")),
    tuple(f"a herd of elephants walking across a {field} grass field ." for field in ("dry", "green")),
    ("the chocolate desert is on the table .", "a bowl of bananas is on the table ."),
    tuple(f"a vintage photo of a {animal} ." for animal in ("cat", "dog")),
    tuple(f"a rider on the blue motorcycle in the {place} ." for place in ("desert", "forest")),
    tuple(f"a surfer , a woman , and a child walk on the {place} ." for place in ("beach", "sun")),
)
DIGIT_FLIPS = (  # a digit, a place, two digits that change places
    tuple(f"the digit {digit} is at the top left of the image ." for digit in (3, 8)),
    tuple(f"the digit 5 is at the {place} of the image ." for place in ("top right", "bottom left")),
    tuple(f"the digit {first} is on the left of the digit {second} ." for first, second in ((2, 7), (7, 2))),
)
