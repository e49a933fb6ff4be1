"""One file a command: parse, call an action, print. `main` is the one error boundary."""
