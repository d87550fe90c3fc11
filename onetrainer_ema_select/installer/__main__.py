"""Run as a file, by whatever Python the scripts found: `python onetrainer_ema_select/installer [DIR]`."""

# No syntax here that an old Python cannot read: it has to be told.
import sys
from pathlib import Path

if sys.version_info < (3, 10):
    sys.exit("This needs Python 3.10 or newer, and this is not: {}".format(sys.executable))

# what Python compiled would stay behind in the checkout
sys.dont_write_bytecode = True

if __name__ == "__main__":
    # Python puts this folder first on the path, or the package's; the package itself is what must be found.
    package = Path(__file__).resolve().parents[1]
    sys.path[:] = [entry for entry in sys.path if not Path(entry or ".").resolve().is_relative_to(package)]
    sys.path.insert(0, str(package.parent))

from onetrainer_ema_select.installer.run import main

if __name__ == "__main__":
    sys.exit(main())
