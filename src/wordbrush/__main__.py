"""`python -m wordbrush`."""

from wordbrush.cli import main

main()
