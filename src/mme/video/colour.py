"""Colours of the normal form: BT.709 in limited range."""

from __future__ import annotations

BLACK, WHITE = 16, 235
"""Brightness of black and white."""

CHROMA_ZERO, CHROMA_SPAN = 128, 224
"""Value of no colour, and distance of the two extremes."""

LUMA_WEIGHTS = (0.2126, 0.7152, 0.0722)
"""Shares of red, green and blue in brightness."""
