"""The paper's structural half (section 3.1): bias, Low-Rank Prompt, Lite Side Branch."""
