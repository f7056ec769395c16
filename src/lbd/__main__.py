"""`python -m lbd` is the `lbd` command."""

from lbd.cli import main

main()
