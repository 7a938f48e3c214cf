"""Several students side by side: trained where they are missing, measured alike, on one page."""
