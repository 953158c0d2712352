"""Prints the bash blocks of a page, or those that contain a text.

Usage: python .ci/commands.py PAGE [TEXT]. Exit code 1 if there is none.
"""

import re
import sys
from pathlib import Path

page, text = sys.argv[1], "".join(sys.argv[2:])
blocks = re.findall(r"^```bash\n(.*?)^```", Path(page).read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
found = [block for block in blocks if text in block]
print("\n".join(found))
sys.exit(None if found else f"{page}: no bash block with {text!r}")
