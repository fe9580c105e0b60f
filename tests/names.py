"""Class names that people have, or that something takes for its own syntax; sorted, as a manifest has them."""

from __future__ import annotations

ODD_NAMES = tuple(
    sorted([
        "挥手", "跳跃", "한국어",
        "नमस्ते", "قفز", "שלום", "🙂 wave", "Ελληνικά", "e\u0301tirer", "a$b$c", "$", "$\\bad{$",
        "x_y|z'", '"q", c', "<b>&amp;</b>", "{}[]%s%%", "C:\\new", "`tick`", "*star* _low_", "line\nbreak", "#1",
        "[a](b)", "long " * 40, "NA", "null", "007", "=1+1", "-", "a=b", "${seed}", "models:/x@y",
    ])
)  # fmt: skip
