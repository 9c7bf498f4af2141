"""`python -m build_engine`."""

from build_engine.cli.app import main

if __name__ == "__main__":
    main()
