"""`python -m broadsheet`: the command `broadsheet`, where its script is not on the path."""

from broadsheet.cli import main

if __name__ == "__main__":
    main()
