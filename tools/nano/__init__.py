"""How phi4-nano, the built-in model, is made; nothing heavy is imported before it is needed."""
