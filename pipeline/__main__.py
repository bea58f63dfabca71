"""`python -m pipeline`: the command where it is installed but not on the path."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
