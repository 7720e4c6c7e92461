"""``ublkd`` and ``python -m ublkd``."""

from ublkd.cli import main

if __name__ == "__main__":
    main()
