"""``vaeflow fit`` and ``vaeflow score``: their arguments, and what they print."""
