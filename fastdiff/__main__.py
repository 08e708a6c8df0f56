"""`python -m fastdiff`: the command line."""

from fastdiff.cli import main

main()
