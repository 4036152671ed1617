"""From text to token ids: prompts with answers, masks, rows of like length, and what they share."""
