"""Whether to believe a result: one word with its reasons, made by the same rules for all of them."""
