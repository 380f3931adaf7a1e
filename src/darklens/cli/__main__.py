"""`python -m darklens.cli`."""

from darklens.cli import main

if __name__ == "__main__":
    main()
