"""`python -m subnet_search` is the command line."""

from subnet_search.cli import main

main()
