"""``python -m fastssl`` is ``fastssl``."""

from fastssl.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
