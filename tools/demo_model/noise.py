"""The ways in which people write one question: case, closing marks, politeness, typing errors."""

import random
import string

_OPENINGS = (
    "Please: ", "Hi, ", "Hello, ", "Hey, ", "Quick question: ", "I was wondering, ", "Sorry, ",
    "Now, ", "So ", "One more thing: ", "Just curious, ", "A question: ", "Ok, ", "Well, ",
    "Good morning, ", "Excuse me, ", "And ", "Next question: ", "I have a question. ",
    "Dear model, ", "Be brief: ", "For my notes: ", "I am new here. ", "My boss asks: ",
    "A friend of mine would like to hear: ", "Could you say, ",
)  # fmt: skip
_CLOSINGS = (
    " Thanks!", " please", ", please.", " Thank you.", " I am new here.", " Be brief.",
    " I forgot.", " Any idea?", " I would be glad to hear it.", " Just a short answer.",
    " I could not find it.", " Explain.",
)  # fmt: skip
_STRAY_WORDS = (
    "really", "today", "maybe", "kindly", "here", "exactly", "then", "again", "still", "actually",
    "perhaps", "finally", "quickly", "also", "simply", "basically", "yesterday", "always", "often",
    "just", "honestly", "first", "very", "truly", "mostly", "usually", "anyway", "somehow", "even",
    "clearly", "indeed", "once", "soon", "later", "only", "too", "thus", "rather", "probably",
)  # fmt: skip
_LETTERS = string.ascii_lowercase


def rewrite(question: str, draw: random.Random) -> str:
    """The question as somebody else would have typed it; no number ever changes."""
    text = question
    if draw.random() < 0.22:
        text = draw.choice(_OPENINGS) + text[:1].lower() + text[1:]
    if draw.random() < 0.12:
        text = text + draw.choice(_CLOSINGS)
    if draw.random() < 0.12:
        text = _interject(text, draw)
    if draw.random() < 0.12:
        text = _mistype(text, draw)
    return _restyle(text, draw)


def _interject(text: str, draw: random.Random) -> str:
    words = text.split(" ")
    words.insert(draw.randint(0, len(words)), draw.choice(_STRAY_WORDS))
    return " ".join(words)


def _restyle(text: str, draw: random.Random) -> str:
    chance = draw.random()
    if chance < 0.25:
        text = text.lower()
    elif chance < 0.27:
        text = text.upper()
    if draw.random() < 0.2:
        text = text.rstrip(".?!")
    elif draw.random() < 0.05:
        text = text + draw.choice("?!.")
    return text


def _mistype(text: str, draw: random.Random) -> str:
    """One letter dropped, doubled, swapped or wrong, in one word of five letters or more."""
    words = text.split(" ")
    long_ones = [i for i, word in enumerate(words) if len(word) >= 5 and word.isalpha()]
    if not long_ones:
        return text
    at = draw.choice(long_ones)
    word, k = words[at], draw.randint(1, len(words[at]) - 2)
    words[at] = draw.choice(
        (
            word[:k] + word[k + 1 :],
            word[:k] + word[k] + word[k:],
            word[:k] + word[k + 1] + word[k] + word[k + 2 :],
            word[:k] + draw.choice(_LETTERS) + word[k + 1 :],
        )
    )
    return " ".join(words)
