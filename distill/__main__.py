"""`python -m distill`: the command line (distill/cli.py)."""

from .cli import main

if __name__ == "__main__":
    main()
