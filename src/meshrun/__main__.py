"""`python -m meshrun` is the command `meshrun`."""

from meshrun.supervisor.cli import main

if __name__ == "__main__":
    main()
