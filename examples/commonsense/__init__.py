"""Fine-tune language models on questions of common sense, and count right answers."""

import sys
from pathlib import Path

# `demo`, `text_data` and others there import each other as neighbours.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
