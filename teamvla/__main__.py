"""``python -m teamvla``: the same as the ``teamvla`` command."""

from teamvla.cli.app import main

if __name__ == "__main__":
    main()
