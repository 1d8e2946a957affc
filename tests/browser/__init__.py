"""The pages in a real Chromium, spoken to over its DevTools protocol."""
