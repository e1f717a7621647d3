"""Commonsense reasoning: fine-tune language models and measure their accuracy."""

import sys
from pathlib import Path

# `demo`, `text_data` and others there import each other as neighbours.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
