"""What fits into a memory budget: the largest batch of a training step, found on tensors without data."""

from s2a.fitting.budget import MARGIN, budget_bytes
from s2a.fitting.fits import Fit, fit, fits
from s2a.fitting.search import MOST_IMAGES, largest_batch

__all__ = ["MARGIN", "MOST_IMAGES", "Fit", "budget_bytes", "fit", "fits", "largest_batch"]
