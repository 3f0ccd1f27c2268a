"""The packaged demo model: a small Llama that answers questions about this platform."""

from pathlib import Path

MODEL_DIR: Path = Path(__file__).parent / "model"
