"""`python -m complete_cli`."""

from complete_cli.cli import main

if __name__ == "__main__":
    main()
