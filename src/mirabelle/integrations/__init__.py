"""Where people train already: callbacks for Lightning and for Hugging Face's Trainer.

Neither package is imported before a callback is made.
"""

from mirabelle.integrations import lightning, transformers
from mirabelle.integrations.companion import Companion, companion

__all__ = ["Companion", "companion", "lightning", "transformers"]
