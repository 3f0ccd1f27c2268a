"""What is wrong with the settings of a Load, whatever kind of model it is for."""

from collections.abc import Collection, Mapping, Sequence


def check_settings(
    given: Mapping[str, int],
    known: Sequence[str],
    context_length: int,
    *,
    ignored: Collection[str] = (),
) -> None:
    """Raises ValueError, which names the setting and what would be right.

    `ignored` are fine without being offered: settings of another kind of engine.
    """
    if unknown := sorted(given.keys() - {*known, *ignored}):
        raise ValueError(f"unknown settings: {', '.join(unknown)}; known: {', '.join(known)}")
    for name, value in given.items():
        if value < 1:
            raise ValueError(f"setting {name} must be positive, not {value}")
    if given.get("max_tokens", 0) > context_length:
        raise ValueError(
            f"setting max_tokens is {given['max_tokens']}, "
            f"but the model's context holds {context_length}"
        )
