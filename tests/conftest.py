"""What every test stands on."""

import os

# Tiny models spend longer on waking threads than on numbers. Set before torch is first imported, inherited by
# the processes that tests start, and left alone where somebody chose otherwise.
os.environ.setdefault("OMP_NUM_THREADS", "1")
