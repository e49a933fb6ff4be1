"""`python -m phi4local` is the console script."""

from phi4local.cli.main import run

run()
