"""How much of a prompt is taken from the context that the step before it left."""

from __future__ import annotations


def kept_tokens(shared: int, block: int, prompt: int, before: tuple[int, int]) -> int:
    """Kept tokens of a prompt that shares ``shared`` tokens with the previous prompt.

    ``before`` are the previous prompt and output; ``block`` tokens are told apart at a time. What
    is shared counts against prompts only: a prompt that goes on from the whole previous prompt and
    has room for its output begins with that output too.
    """
    context = sum(before)
    if shared + block > before[0] and prompt >= context:
        shared = context
    return min(shared, context, prompt - 1)


def kept_if_growing(prompt: int, before: tuple[int, int]) -> int | None:
    """Where nothing is known of reuse: a prompt with room for the whole context begins with it,
    a shorter one (None) keeps nothing that is known."""
    context = sum(before)
    return min(context, prompt - 1) if prompt >= context else None
