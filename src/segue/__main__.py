"""`python -m segue` is `segue`: for launchers that start modules, such as `accelerate launch -m segue`."""

from segue.cli.main import main

if __name__ == "__main__":
    main()
