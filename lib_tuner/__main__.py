"""`python3 -m lib_tuner`. This file is written so that every Python since 2.7 can read it: an old one shall say a sentence, not a SyntaxError."""

import sys


def main():
    if sys.version_info < (3, 10):
        sys.stderr.write("The Tuner needs Python 3.10 or later and this is Python %d.%d: start it with a newer one.\n" % sys.version_info[:2])
        return 2
    from .cli import main as command_line

    return command_line(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
